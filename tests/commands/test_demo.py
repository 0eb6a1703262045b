"""`bert-pretrain demo`: its steps are commands, and its last lines say what the curve says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bert_pretrain.__main__ import main
from bert_pretrain.commands.demo import summary


def test_the_summary_says_what_the_points_say() -> None:
    means = {"fine_tuned": 0.7, "frozen_probe": 0.6, "from_scratch": 0.4, "floor": 0.5}
    points = [
        {
            "arm": arm,
            "num_per_class": 4,
            "num_rows": 8,
            "num_seeds": 5,
            "mean": mean,
            "interval": None,
            "versus": None if arm == "from_scratch" else "from_scratch",
            "difference": None if arm == "from_scratch" else mean - 0.4,
            "difference_interval": None if arm == "from_scratch" else [0.2, 0.4],
        }
        for arm, mean in means.items()
    ]
    said = summary("text", points, Path("runs/demo/text/curve"))
    assert "runs/demo/text/curve/label_efficiency.png" in said
    assert (
        "  4 labels per class: from scratch 0.400, pretrained 0.700: +0.300 [+0.200, +0.400]; "
        "frozen 0.600, TF-IDF 0.500\n"
    ) in said


def test_an_unknown_part_and_a_used_folder_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, said in (
        (["--parts", "sound"], "--parts"),
        (["--output_dir", str(tmp_path)], "is not an empty folder"),
    ):
        (tmp_path / "file").touch()
        with pytest.raises(SystemExit) as end:
            main(["demo", *flags])
        assert end.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize(
    ("part", "pretraining"),
    [("text", "pretrain --data_files"), ("images", "pretrain --objective contrastive")],
)
def test_the_encoder_of_the_demonstration_is_better_than_none(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], part: str, pretraining: str
) -> None:
    # Minutes of a slow machine; a fast one needs half as many.
    flags = ["--parts", part, "--minutes", "6", "--output_dir", str(tmp_path / "demo")]
    assert main(["demo", *flags]) == 0
    points = json.loads((tmp_path / "demo/demo.json").read_text())["points"][part]
    (few,) = [row for row in points if row["num_per_class"] == 4 and row["arm"] == "fine_tuned"]
    assert few["difference_interval"][0] > 0
    printed = capfd.readouterr().out
    assert f"$ bert-pretrain {pretraining}" in printed
    assert "4 labels per class" in printed
