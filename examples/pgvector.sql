-- What pgvector_search.py runs, to take away. %(v)s is the question's vector, %(words)s its words. Vectors have length 1,
-- so <#>, minus the inner product, orders as the cosine does; <~> is the Hamming distance. TEMP is for the trial.

-- == tables
CREATE EXTENSION IF NOT EXISTS vector;
-- Vectors beyond 2 kB are kept elsewhere unless their storage is plain; exact search takes three times as long then.
CREATE TEMP TABLE vectors (id int PRIMARY KEY, v vector(768) STORAGE PLAIN);
CREATE TEMP TABLE halfvecs (id int PRIMARY KEY, v halfvec(768));
CREATE TEMP TABLE bits (id int PRIMARY KEY, v bit(768));
CREATE TEMP TABLE texts (id int, words tsvector);

-- == indexes
CREATE INDEX vectors_hnsw ON vectors USING hnsw (v vector_ip_ops);
CREATE INDEX cuts_hnsw ON vectors USING hnsw ((subvector(v, 1, 256)::vector(256)) vector_cosine_ops);
CREATE INDEX halfvecs_hnsw ON halfvecs USING hnsw (v halfvec_ip_ops);
CREATE INDEX bits_hnsw ON bits USING hnsw (v bit_hamming_ops);
-- The candidates of a search by index, and the most that it can return.
SET hnsw.ef_search = 100;
-- Few rows are to use the indexes, too.
SET enable_seqscan = off;

-- == vector, of vectors
-- Exact, as no index knows the sum.
SELECT id, -(v <#> %(v)s) FROM vectors ORDER BY (v <#> %(v)s) + 0 LIMIT 10;

-- == vector HNSW, of vectors vectors_hnsw
SELECT id FROM vectors ORDER BY v <#> %(v)s LIMIT 10;

-- == halfvec HNSW, of halfvecs halfvecs_hnsw
SELECT id FROM halfvecs ORDER BY v <#> %(v)s::halfvec LIMIT 10;

-- == bit HNSW, of bits bits_hnsw
SELECT id FROM bits ORDER BY v <~> binary_quantize(%(v)s) LIMIT 10;

-- == bit HNSW rescored, of bits bits_hnsw vectors
SELECT id FROM (SELECT id FROM bits ORDER BY v <~> binary_quantize(%(v)s) LIMIT 100) AS best
JOIN vectors USING (id) ORDER BY (v <#> %(v)s) + 0 LIMIT 10;

-- == 256 components HNSW rescored, of vectors cuts_hnsw
SELECT id FROM (SELECT id FROM vectors ORDER BY subvector(v, 1, 256)::vector(256) <=> subvector(%(v)s, 1, 256) LIMIT 100)
AS best JOIN vectors USING (id) ORDER BY (v <#> %(v)s) + 0 LIMIT 10;

-- == vectors and words, of vectors texts
-- A hundred of each, by the sum of both scores in standard deviations. The words are joined by | for "any of them".
WITH near AS (SELECT id, -(v <#> %(v)s) AS score FROM vectors ORDER BY (v <#> %(v)s) + 0 LIMIT 100),
asked AS (SELECT replace(plainto_tsquery('english', %(words)s)::text, '&', '|')::tsquery AS query),
worded AS (SELECT id, ts_rank(words, query) AS score FROM texts, asked WHERE words @@ query ORDER BY score DESC LIMIT 100),
merged AS (
    SELECT id, coalesce(near.score, (SELECT min(score) FROM near)) AS a,
        coalesce(worded.score, (SELECT min(score) FROM worded), 0) AS b
    FROM near FULL JOIN worded USING (id)
),
spread AS (SELECT stddev_pop(a) AS of_a, stddev_pop(b) AS of_b FROM merged)
SELECT id FROM merged, spread ORDER BY a / nullif(of_a, 0) + coalesce(b / nullif(of_b, 0), 0) DESC LIMIT 10;
