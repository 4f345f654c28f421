"""`std`, and `python -m std_cli`: signals are taken before anything is imported that takes time. A
TAB in a shell is answered without that."""

import os


def main() -> None:
    if instruction := os.environ.get("_STD_COMPLETE"):
        from std_cli.cli.completion import answer

        if answer(instruction):
            return
    from std_cli.interruption import install

    install()
    from std_cli.environment import rest_waiting_threads

    rest_waiting_threads()
    from std_cli.cli.commands import main as run

    run()


if __name__ == "__main__":
    main()
