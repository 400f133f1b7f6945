"""Write the generated files of spec/vectors again: `make vectors`."""

from tests.vectors import FILES
from tests.vectors.encoding import text_of

if __name__ == "__main__":
    for path, vectors in FILES.items():
        path.write_text(text_of(vectors()))
        print(f"wrote {path.name}: {len(vectors().cases)} cases")
