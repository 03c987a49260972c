"""``python -m lska_ops``: each word calls one function elsewhere."""

import argparse
import sys


def _demo(args):
    from .yolo.data import DataError
    from .yolo.demo import StartError, demo

    try:
        return demo(args.module, args.epochs, args.imgsz, args.data, args.device, args.out)
    except (DataError, StartError) as error:  # nothing else: a bug in a training must show its traceback
        print(f"lska_ops: {error}", file=sys.stderr)
        return 2


def _doctor(args):
    from .doctor import doctor

    return doctor()


def main(argv=None):
    parser = argparse.ArgumentParser(prog="lska_ops", description="Fused LSKA and ACmix for YOLO.")
    words = parser.add_subparsers(required=True, metavar="word")
    word = words.add_parser(
        "doctor", help="what runs here, and what would help; exit code 1 if only the reference does"
    )
    word.set_defaults(run=_doctor)
    word = words.add_parser(
        "demo", help="train, validate and predict on handwritten digits, or on your own data"
    )
    word.add_argument(
        "--module", choices=("LSKA", "ACmix"), default="LSKA", help="module in yolo11n (default: LSKA)"
    )
    word.add_argument(
        "--epochs",
        type=int,
        help="passes over the training pictures (default: what the digits need; ultralytics' own for --data)",
    )
    word.add_argument(
        "--imgsz", type=int, help="side in pixels that pictures are scaled to (default: as for --epochs)"
    )
    word.add_argument("--data", help="data YAML of your own (default: writes the digits)")
    word.add_argument("--device", default="cpu", help="cpu or one GPU number (default: cpu)")
    word.add_argument("--out", default="demo", help="folder for everything that is written (default: ./demo)")
    word.set_defaults(run=_demo)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("\nlska_ops: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
