-- What duckdb_search.py runs, to take away. $v is the question's vector as a text such as '[0.1, 0.2]', which is read ten
-- times as fast as a list; $bits its signs, eight to a byte; $words its words.
-- `rows` are columns that Python hands over.

-- == floats
CREATE TABLE floats AS SELECT id, v FROM rows;

-- == cuts
CREATE TABLE cuts AS SELECT id, v FROM rows;

-- == bits
CREATE TABLE bits AS SELECT id, v::BIT AS v FROM rows;

-- == floats_hnsw
-- An index in a file is an experiment of DuckDB's yet.
SET hnsw_enable_experimental_persistence = true;
CREATE INDEX floats_hnsw ON floats USING HNSW (v) WITH (metric = 'ip');

-- == words
CREATE TABLE texts AS SELECT id, v AS text FROM rows;
PRAGMA create_fts_index('texts', 'id', 'text');

-- == float32, of floats
-- Exact, as no index knows the sum.
SELECT id FROM floats ORDER BY array_negative_inner_product(v, $v::FLOAT[768]) + 0 LIMIT 10;

-- == float32 HNSW, of floats floats_hnsw
SELECT id FROM floats ORDER BY array_negative_inner_product(v, $v::FLOAT[768]) LIMIT 10;

-- == bits, of bits
SELECT id FROM bits ORDER BY bit_count(xor(v, $bits::BLOB::BIT)), id LIMIT 10;

-- == bits rescored, of bits floats
SELECT id FROM (SELECT id FROM bits ORDER BY bit_count(xor(v, $bits::BLOB::BIT)) LIMIT 100) JOIN floats USING (id)
ORDER BY array_negative_inner_product(v, $v::FLOAT[768]) + 0 LIMIT 10;

-- == 256 components, of cuts
SELECT id FROM cuts ORDER BY array_cosine_distance(v, ($v::FLOAT[])[1:256]::FLOAT[256]) LIMIT 10;

-- == vectors and words, of floats texts
-- A hundred of each, by the sum of both scores in standard deviations.
WITH near AS (
    SELECT id, -array_negative_inner_product(v, $v::FLOAT[768]) AS score FROM floats ORDER BY score DESC LIMIT 100
),
ranked AS (SELECT id, fts_main_texts.match_bm25(id, $words) AS score FROM texts),
worded AS (SELECT * FROM ranked WHERE score IS NOT NULL ORDER BY score DESC LIMIT 100),
merged AS (
    SELECT id, coalesce(near.score, (SELECT min(score) FROM near)) AS a,
        coalesce(worded.score, (SELECT min(score) FROM worded), 0) AS b
    FROM near FULL JOIN worded USING (id)
),
spread AS (SELECT stddev_pop(a) AS of_a, stddev_pop(b) AS of_b FROM merged)
SELECT id FROM merged, spread ORDER BY a / nullif(of_a, 0) + coalesce(b / nullif(of_b, 0), 0) DESC LIMIT 10;
