-- What sqlite_vec_search.py runs, to take away. :v is the question's vector, :int8 and :bits the same in these formats,
-- :words its words, quoted and joined by OR. vec_quantize_binary packs bits in another order than the server does.

-- == tables
CREATE VIRTUAL TABLE floats USING vec0(v float[768] distance_metric=cosine);
CREATE VIRTUAL TABLE int8s USING vec0(v int8[768] distance_metric=cosine);
CREATE VIRTUAL TABLE bits USING vec0(v bit[768]);
CREATE VIRTUAL TABLE cuts USING vec0(v float[256] distance_metric=cosine);
CREATE VIRTUAL TABLE texts USING fts5(text, tokenize = porter);

-- == float32, of floats
SELECT rowid, -distance FROM floats WHERE v MATCH :v AND k = 10;

-- == int8, of int8s
SELECT rowid FROM int8s WHERE v MATCH vec_int8(:int8) AND k = 10;

-- == bits, of bits
SELECT rowid FROM bits WHERE v MATCH vec_bit(:bits) AND k = 10;

-- == bits rescored, of bits floats
SELECT rowid FROM floats WHERE rowid IN (SELECT rowid FROM bits WHERE v MATCH vec_bit(:bits) AND k = 100)
ORDER BY vec_distance_cosine(v, :v) LIMIT 10;

-- == 256 components, of cuts
SELECT rowid FROM cuts WHERE v MATCH vec_normalize(vec_slice(:v, 0, 256)) AND k = 10;

-- == vectors and words, of floats texts
-- A hundred of each, by the sum of both scores, each divided by the root of its variance.
WITH near AS (SELECT rowid AS id, -distance AS score FROM floats WHERE v MATCH :v AND k = 100),
worded AS (SELECT rowid AS id, -rank AS score FROM texts WHERE texts MATCH :words ORDER BY rank LIMIT 100),
merged AS (
    SELECT id, coalesce(near.score, (SELECT min(score) FROM near)) AS a,
        coalesce(worded.score, (SELECT min(score) FROM worded), 0) AS b
    FROM near FULL JOIN worded USING (id)
),
spread AS (SELECT sqrt(avg(a * a) - avg(a) * avg(a)) AS of_a, sqrt(avg(b * b) - avg(b) * avg(b)) AS of_b FROM merged)
SELECT id FROM merged, spread ORDER BY a / nullif(of_a, 0) + coalesce(b / nullif(of_b, 0), 0) DESC LIMIT 10;
