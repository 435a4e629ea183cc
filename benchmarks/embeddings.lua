-- What wrk sends: wrk -t1 -c64 -d6 -s benchmarks/embeddings.lua http://127.0.0.1:7001/v1/embeddings
wrk.method = "POST"
wrk.body = '{"input": "the quick brown fox jumps over the dog", "model": "embeddinggemma-300m", "encoding_format": "base64"}'
wrk.headers["Content-Type"] = "application/json"
