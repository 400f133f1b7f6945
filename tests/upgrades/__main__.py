"""Pack the code of earlier versions, so that tests run it where there is no history of Git.

python -m tests.upgrades
"""

import io
import subprocess
import tarfile

from tests.upgrades.versions import ARCHIVE, COMMITS, ROOT

# Packed together, because they have most of their text in common.
with tarfile.open(ARCHIVE, "w:xz", preset=9) as packed:
    for revision, commit in COMMITS.items():
        command = ("git", "archive", "--format=tar", commit, "src/gregor")
        archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as tree:
            for member in tree.getmembers():
                if member.name.endswith(".py"):
                    content = tree.extractfile(member)
                    member.name = member.name.replace("src", revision, 1)
                    packed.addfile(member, content)
