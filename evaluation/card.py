"""What Google's model card says of the genuine model, to be laid beside what was measured here. Quoted."""

CARD = {
    "MTEB(Multilingual, v2)": {768: 61.15, 512: 60.71, 256: 59.68, 128: 58.23},
    "MTEB(eng, v2)": {768: 69.67, 512: 69.18, 256: 68.37, 128: 66.66},
    "MTEB(Code, v1)": {768: 68.76, 512: 68.48, 256: 66.74, 128: 62.96},
}
"""Mean over tasks, full precision, by mteb's name of the benchmark and by dimensions."""

SOURCE = "https://ai.google.dev/gemma/docs/embeddinggemma/model_card"
