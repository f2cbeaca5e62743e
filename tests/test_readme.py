"""What README shows, runs."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_blocks_run_one_after_the_other(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out.split("\n")
    assert len(blocks) >= 3
    assert printed[0].endswith("True")
    assert float(printed[1]) > 0
    assert printed[2].endswith("True")


def test_the_first_block_is_as_exact_as_it_says():
    names: dict = {}
    exec(re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0], names)
    assert str(names["stats"].steps) == re.search(r"# (\d+) evaluations", README)[1]
