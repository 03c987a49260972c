"""What the profile is asked, and what README says of it."""

from pathlib import Path

import pytest
from ptx import calls


def test_profile_reads_a_problem_and_says_what_it_does_not_read():
    text = "lska_fwd 96x56x56 B8 k35 fp16 channels_last"
    assert str(calls.parse(text)) == text
    text = "acmix_bwd 128x40x41 B8 k5 head8 stride2 bf16 NCHW"
    problem = calls.parse(text)
    assert str(problem) == text and problem.sides == (20, 21) and problem.outputs == 8 * 128 * 20 * 21
    # q, k, v, grad_y and three gradients; grad_y is of fewer pixels.
    assert problem.least_bytes(7) == 2 * 8 * 128 * (6 * 40 * 41 + 20 * 21)
    with pytest.raises(ValueError, match="'fp8' is not understood; expected one of lska_fwd"):
        calls.parse("lska_fwd fp8")
    with pytest.raises(ValueError, match="k is 9; expected one of 7"):
        calls.parse("lska_fwd 8x8x8 k9")
    for text, said in (
        ("lska_fwd k7", "has no size"),
        ("64x80x80", "has no op"),
        ("lska_fwd 8x8x8 k7 k7", "'k7' comes second"),
        ("lska_fwd 8x0x8", "'8x0x8' is not understood"),
        ("lska_fwd 8x8x8 B0", "'B0' is not understood"),
        ("lska_fwd 8x8x8 head2", "lska_fwd has no head; ACmix has"),
        ("acmix_fwd 8x8x8 k4", "k is 4; expected an odd number"),
        ("acmix_fwd 6x8x8", "C is 6; expected a multiple of head, 4"),
    ):
        with pytest.raises(ValueError, match=said):
            calls.parse(text)


@pytest.mark.parametrize(
    "words, said",
    [
        (["lska_fwd", "8x8x8", "--gpu", "V100"], "'V100'; expected one of h200"),
        (["--gpu", "T4"], "are for one problem"),
        (["--lines", "3"], "are for one problem"),
        (["--only", "no such call"], "matches no call"),
        (["--only", "["], "unterminated character set"),
        (["lska_fwd", "8x8x8", "--root", "nowhere"], "has no csrc"),
        (["triton_lska_fwd", "8x8x8", "--gpu", "rtx-4090"], "for the A100 alone"),
        (["lska_fwd"], "has no size"),
    ],
)
def test_profile_says_what_is_wrong_with_its_command_line(words, said, capsys):
    from ptx import profile

    try:
        status = profile.main(words)
    except SystemExit as ended:
        status = ended.code
    assert status == 2 and said in capsys.readouterr().err


def test_profile_readme_compares_with_eager_alone():
    import predicted

    text = "\n".join(predicted.block(Path(predicted.__file__).parent / "results"))
    rows = [line for line in text.split("\n") if line.startswith("| ") and "×" in line][1:]
    for row in rows:
        cells, judged = (
            row.split(" | ")[1:],
            row.split(" | ")[0].endswith(("k 7", "k 23", "k 53")) and "(P" in row,
        )
        assert len(cells) == 6 and all(cell.count("×") == (2 if judged else 1) for cell in cells), row
        assert "e+" not in row
