-- At a high load, an order is updated 1.2 times on average. The new versions of its row need 1.2 times the space of the
-- rows that were inserted into the page. In pages of 50 %, one update in three found no room, so that PostgreSQL locked
-- the old row first and logged the whole new row.
ALTER TABLE orders SET (fillfactor = 45);
