"""``lska-ops`` and ``python -m lska_ops``: each word calls one function elsewhere."""

import argparse
import codecs
import os
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


def _insert(args):
    from .yolo.insertion import plan_insert

    return _change(args, lambda: plan_insert(args.model, args.module, args.after, _options(args.options)))


def _remove(args):
    from .yolo.insertion import plan_remove

    return _change(args, lambda: plan_remove(args.model, args.what[0] if len(args.what) == 1 else args.what))


def _change(args, plan):
    """Prints what a change of a model file means, and writes the new file where one is named."""
    from .yolo.insertion import InsertError, check_output, write
    from .yolo.row_diff import row_diff

    try:
        if args.out:
            check_output(args.out, args.word)
        planned = plan()
        lines = row_diff(planned)
        write(planned, args.out, args.word)  # first: whatever becomes of what is printed, the file is there
    except (InsertError, ImportError, OSError) as error:
        print(f"lska_ops: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    print(f"\nwritten: {args.out}" if args.out else "\nnothing is written; -o my.yaml writes it")
    return 0


def _options(words):
    """``k_size=23`` as {"k_size": 23}; what is no number stays text, for the module to refuse."""
    from .yolo.insertion import InsertError

    options = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise InsertError(f"insert: option is {word}; expected name=value, such as k_size=23")
        if name in options:
            raise InsertError(f"insert: option {name} is given twice; expected once")
        options[name] = int(value) if value.removeprefix("-").isdecimal() else value
    return options


def _convert(args):
    from .yolo.checkpoints import CheckpointError, convert

    try:
        replaced = convert(args.old, args.new)
    except (CheckpointError, ImportError, OSError) as error:
        print(f"lska_ops: {error}", file=sys.stderr)
        return 2
    print(f"written: {args.new}, with lska_ops in place of {', '.join(replaced)}")
    return 0


def _yolo(words):
    from .yolo import register
    from .yolo.startup import yolo

    sys.argv[:] = ["yolo", *words]  # in place, and first: ultralytics keeps the list it finds at its import
    try:
        register()
    except ImportError as error:
        print(f"lska_ops: {error}", file=sys.stderr)
        return 2
    yolo()
    return 0


def _enable(args):
    from .yolo.startup import enable

    try:
        print(f"on: {enable()}\nEvery Python of this environment registers when it imports ultralytics.")
    except OSError as error:
        print(f"lska_ops: enable: {error}; expected an environment that you may write", file=sys.stderr)
        return 2
    return 0


def _disable(args):
    from .yolo.startup import disable

    try:
        removed = disable()
    except OSError as error:
        print(f"lska_ops: disable: {error}; expected an environment that you may write", file=sys.stderr)
        return 2
    print("off" + "".join(f", removed {path}" for path in removed))
    return 0


# What is printed where the terminal's encoding has no such character.
PLAIN = {"→": "->", "×": "x", "…": "..."}


def _plainer(error):
    """A handler of codecs: words that every terminal has, escapes for what has none."""
    character = error.object[error.start]
    return (
        (PLAIN[character], error.start + 1) if character in PLAIN else codecs.backslashreplace_errors(error)
    )


def _print_in_any_encoding():
    """No message may fail for its characters; ultralytics' have emoji."""
    codecs.register_error("lska_ops", _plainer)
    for stream in (sys.stdout, sys.stderr):
        # Not a notebook's, which has no encoding, and not where the user has chosen what to do.
        if getattr(stream, "errors", None) in ("strict", "surrogateescape", "backslashreplace"):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="lska_ops")


def _add_change(words):
    word = words.add_parser(
        "insert", help="put a module into a model YAML, every row number moved along; prints the rows"
    )
    word.add_argument("model", help="a model YAML, or a name such as yolo11n.yaml")
    word.add_argument("module", help="LSKA, LSKATrivial, LKA, LKATrivial, ACmix or SPPF_LSKA")
    word.add_argument("options", nargs="*", help="options of its row, such as k_size=23")
    word.add_argument(
        "--after",
        nargs="+",
        required=True,
        metavar="PLACE",
        help="P3 (the head's input of that level), backbone, SPPF, or row numbers",
    )
    word.set_defaults(run=_insert)
    less = words.add_parser("remove", help="take rows of ours out of a model YAML; prints the rows")
    less.add_argument("model", help="a model YAML, or a name such as yolo11n-LSKA.yaml")
    less.add_argument("what", nargs="+", help="a module's name, for all of its rows, or row numbers")
    less.set_defaults(run=_remove)
    for each in (word, less):
        each.add_argument("-o", "--out", help="the new YAML; without it nothing is written")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="lska-ops", description="Fused LSKA and ACmix for YOLO.")
    words = parser.add_subparsers(dest="word", metavar="word")
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
    _add_change(words)
    words.add_parser("yolo", help="ultralytics' own command with our names known: yolo train model=...")
    word = words.add_parser("enable", help="let plain `yolo` and tune() know our names in this environment")
    word.set_defaults(run=_enable)
    words.add_parser("disable", help="take that back").set_defaults(run=_disable)
    word = words.add_parser("convert", help="write a fork's checkpoint again with our LSKA and ACmix in it")
    word.add_argument("old", help="a .pt file")
    word.add_argument("new", help="the .pt file to write")
    word.set_defaults(run=_convert)
    argv = sys.argv[1:] if argv is None else argv
    _print_in_any_encoding()
    if argv[:1] == ["yolo"]:  # what follows is ultralytics' to read, -h included
        return _yolo(argv[1:])
    args = parser.parse_args(argv)
    if not args.word:
        parser.print_help(sys.stderr)
        return 2
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `doctor | head`: whoever reads has enough
        if args.run is _demo:  # the pipe may be one of the training's
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest at its end
        return 141  # as of a process that SIGPIPE ended
    except KeyboardInterrupt:
        print("\nlska_ops: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
