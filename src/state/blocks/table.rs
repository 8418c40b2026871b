//! Room in hash tables that drop an old entry for each new one.
//!
//! Called by `index.rs` and `lru.rs` before they insert. `hashbrown` marks where an entry was removed if a search may have
//! to go on there; when marks have used up the room, it doubles the table even if that is only three fifths full. A cache
//! in use removes as often as it inserts, so all its tables would end up doubled: 85 bytes per block instead of 60.

use hashbrown::HashTable;

/// Makes room for one more entry: as large as it was if only marks are in the way, doubled from eight ninths on.
pub(super) fn make_room<T>(table: &mut HashTable<T>, hash: impl Fn(&T) -> u64) {
    if table.len() < table.capacity() {
        return;
    }
    let mut unmarked = HashTable::with_capacity(table.len() + table.len() / 8 + 1);
    for entry in table.drain() {
        unmarked.insert_unique(hash(&entry), entry, &hash);
    }
    *table = unmarked;
}
