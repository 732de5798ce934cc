"""``python -m bench``: print the tables that stand in bench/RESULTS.md."""

import platform

import torch

from bench import edits, locality, rows, study


def main() -> None:
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    for title, module in (("Rows", rows), ("Edits", edits), ("Locality", locality), ("Studies", study)):
        print(f"## {title}\n")
        print("\n".join(module.table()), "\n", flush=True)


if __name__ == "__main__":
    main()
