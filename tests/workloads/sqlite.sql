-- A small database at work; run as: sqlite3 /tmp/work.db < sqlite.sql
-- The output depends on nothing but this file. It exercises the rollback journal, the WAL, locks, fsync,
-- temporary files (a sort larger than the cache) and truncation (VACUUM).
.bail on
.mode list
.separator |
.headers off
DROP TABLE IF EXISTS orders;
DROP TABLE IF EXISTS customers;
PRAGMA journal_mode = DELETE;
PRAGMA synchronous = FULL;
PRAGMA cache_size = 20;
PRAGMA temp_store = FILE;

CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, city TEXT NOT NULL);
CREATE TABLE orders (
    id INTEGER PRIMARY KEY,
    customer INTEGER NOT NULL REFERENCES customers (id),
    item TEXT NOT NULL,
    amount INTEGER NOT NULL CHECK (amount > 0),
    note BLOB
);
CREATE INDEX orders_by_customer ON orders (customer, amount);
CREATE INDEX orders_by_item ON orders (item);

BEGIN;
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50)
INSERT INTO customers SELECT i, printf('customer %03d', i), substr('ABCDE', 1 + i % 5, 1) FROM n;
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
INSERT INTO orders SELECT i, 1 + i * 7 % 50, printf('item %d', i * i % 37), 1 + i * 31 % 97, zeroblob(i % 200)
FROM n;
COMMIT;

SELECT 'rows', (SELECT count(*) FROM customers), (SELECT count(*) FROM orders);
SELECT 'sum', sum(amount), min(amount), max(amount), round(avg(amount), 3) FROM orders;
SELECT 'city', city, count(*), sum(amount) FROM orders JOIN customers c ON c.id = customer GROUP BY city ORDER BY city;
SELECT 'best', name, sum(amount) AS total FROM orders JOIN customers c ON c.id = customer
GROUP BY c.id ORDER BY total DESC, name LIMIT 5;
SELECT 'window', id, amount, sum(amount) OVER (ORDER BY id ROWS 2 PRECEDING) FROM orders WHERE id BETWEEN 10 AND 13;
SELECT 'plan', detail FROM pragma_index_list('orders') JOIN (SELECT 'indexed' AS detail) LIMIT 1;

BEGIN;
DELETE FROM orders WHERE id % 2 = 0;
SELECT 'in transaction', count(*) FROM orders;
SAVEPOINT inner_one;
UPDATE orders SET amount = amount + 1000;
SELECT 'in savepoint', sum(amount) FROM orders;
ROLLBACK TO inner_one;
ROLLBACK;
SELECT 'rolled back', count(*), sum(amount) FROM orders;

PRAGMA journal_mode = WAL;
BEGIN IMMEDIATE;
UPDATE orders SET item = upper(item) WHERE customer = 8;
COMMIT;
PRAGMA wal_checkpoint(TRUNCATE);
SELECT 'upper', count(*) FROM orders WHERE item GLOB 'ITEM*';
PRAGMA journal_mode = DELETE;

SELECT 'sorted', group_concat(id, ' ') FROM (SELECT id FROM orders ORDER BY length(note) DESC, item, id LIMIT 10);
DELETE FROM orders WHERE id > 100;
VACUUM;
SELECT 'left', count(*), sum(length(note)) FROM orders;
PRAGMA integrity_check;
SELECT 'sqlite: ok';
