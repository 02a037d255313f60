"""docs/files.md says what the code does."""

import runpy
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_table_of_files_is_up_to_date():
    table = runpy.run_path(str(REPOSITORY / "scripts" / "file_table.py"))["table"]()
    stored = (REPOSITORY / "docs" / "files.md").read_text()
    assert table == stored, "python scripts/file_table.py > docs/files.md"
