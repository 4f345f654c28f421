"""`std`, and `python -m std_cli`: signals are taken before anything is imported that takes time."""

from std_cli.interruption import install


def main() -> None:
    install()
    from std_cli.cli.commands import main as run

    run()


if __name__ == "__main__":
    main()
