"""Retrieval for generation (RAG): passages of long documents, with their places, and the prompt for a language model.

    make serve &
    make example NAME=long_documents
    make example NAME=long_documents ARGS="How do I limit the size of a file?"

The documents are this project's own pages. The server cuts them into chunks of 256 tokens that overlap by 64, and says
where each begins and ends. A page's name is its chunks' title, which helps to find them.
"""

import sys
from pathlib import Path

from examples.client import embed, predict
from examples.trial import exact

PAGES = Path(__file__).resolve().parents[1] / "docs"
ASKED = {
    "Which vector types does pgvector have?": "databases.md",
    "How do I embed a file of a million texts?": "corpora.md",
    "How many components should a vector keep?": "vectors.md",
    "How do I fine-tune the model on my own pairs?": "tuning.md",
    "Where do I set an API key?": "security.md",
    "How do I deploy this on Kubernetes?": "deploying.md",
    "Which fields does Cohere's API take?": "apis.md",
    "Where do the official weights come from?": "weights.md",
}
PASSAGES = 3


def main() -> None:
    pages = sorted(PAGES.glob("*.md"))
    texts = [page.read_text(encoding="utf-8") for page in pages]
    asked = {"texts": texts, "titles": [page.stem for page in pages], "task": "retrieval_document"}
    vectors, output = predict(**asked, chunk=256, overlap=64)
    chunks = output["chunks"]  # for each vector the text's position, and the chunk's first character and its end
    print(f"{len(texts)} documents, {len(chunks)} chunks")

    question = " ".join(sys.argv[1:]) or "How do I embed a file of a million texts?"
    passages = []
    for i in exact(vectors, embed([question], "retrieval_query"), PASSAGES)[0]:
        page, start, end = chunks[i]
        passages.append(f"[{pages[page].name}, characters {start} to {end}]\n{texts[page][start:end].strip()}")
    print("\n\n".join(["Answer from these passages, and name the one you used.", *passages, f"Question: {question}"]))

    found = exact(vectors, embed(list(ASKED), "retrieval_query"), PASSAGES)
    hits = [{pages[chunks[i][0]].name for i in row} for row in found]
    right = sum(page in names for page, names in zip(ASKED.values(), hits, strict=True))
    print(f"\nThe right page is among the best {PASSAGES} passages for {right} of {len(ASKED)} test questions.")


if __name__ == "__main__":
    main()
