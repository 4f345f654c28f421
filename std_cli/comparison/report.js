const one = selector => document.querySelector(selector);
const all = selector => [...document.querySelectorAll(selector)];

for (const button of all("#table th button"))
  button.onclick = () => {
    const head = button.parentElement, place = head.cellIndex;
    const up = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of all("#table th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up === 1 ? "ascending" : "descending");
    const value = row => row.cells[place].dataset.value;
    const order = (a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      return up * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
    };
    const body = one("#table tbody");
    body.append(...[...body.rows].sort(order));
  };

const choose = () => {
  const wanted = all("#choice select").map(select => select.value).join(" ");
  for (const group of all(".group")) group.hidden = group.dataset.group !== wanted;
  one("#nothing").hidden = all(".group:not([hidden])").length > 0;
};
for (const select of all("#choice select")) select.onchange = choose;
choose();

// one line for all pictures, so that the same part of each is seen
document.addEventListener("input", event => {
  if (!event.target.matches(".pair input")) return;
  const place = event.target.closest("#grid, dialog"), at = event.target.value;
  place.style.setProperty("--at", at + "%");
  for (const slider of place.querySelectorAll(".pair input")) slider.value = at;
});

const dialog = one("dialog");
for (const button of all("button.zoom"))
  button.onclick = () => {
    const figure = button.closest("figure"), shown = one("#zoomed");
    const pair = figure.querySelector(".pair").cloneNode(true);
    pair.querySelector("input").value = 50;
    dialog.style.setProperty("--at", "50%");
    shown.replaceChildren(pair);
    one("#zoomed-text").textContent = figure.querySelector(".about").innerText.replace("\n", ": ");
    dialog.showModal();
  };
one("#close").onclick = () => dialog.close();
