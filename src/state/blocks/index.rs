//! Which backends hold a block, over all backends.
//!
//! Called by `state::blocks` alone: the caches write it, each only its own backend's bit and under its own lock; requests
//! read it. Bounded by what the caches hold: a block that nobody holds is not kept. It knows no order and no tokens.

use super::BlockKey;
use super::table::make_room;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use parking_lot::{RwLock, RwLockWriteGuard};

/// Backends per plane: one bit of a `u32` each.
const PLANE: usize = u32::BITS as usize;

/// A set of tables for each 32 backends: more bits would be more room for each block.
#[derive(Debug)]
pub(super) struct Index {
    planes: Box<[Plane]>,
}

/// So many tables that two requests seldom want the same one, and that one which grows is done within some 10 µs. A table is
/// locked for the blocks of a group at most.
#[derive(Debug)]
struct Plane {
    shards: Box<[RwLock<HashTable<Holders>>; BlockKey::SHARDS]>,
}

/// A block and, bit by bit, who holds it; at least one backend does.
#[derive(Clone, Copy, Debug)]
#[repr(Rust, packed(4))]
struct Holders {
    key: BlockKey,
    backends: u32,
}

impl Index {
    pub(super) fn new(backends: usize) -> Self {
        let plane = |_| Plane { shards: Box::new(std::array::from_fn(|_| RwLock::default())) };
        Self { planes: (0..backends.div_ceil(PLANE)).map(plane).collect() }
    }

    /// How many of the keys each backend holds from the first on without a gap.
    pub(super) fn held(&self, keys: &[BlockKey], backends: usize) -> Vec<usize> {
        let mut held = vec![keys.len(); backends];
        for (plane, held) in self.planes.iter().zip(held.chunks_mut(PLANE)) {
            let mut holders = u32::MAX >> (PLANE - held.len());
            let mut shard = Locked::default();
            for (blocks, key) in keys.iter().enumerate() {
                let table = shard.of(*key, |shard| plane.shards[shard].read());
                let found = table.find(key.0, |holders| holders.is_of(*key));
                let mut ends = holders & !found.map_or(0, |holders| holders.backends);
                holders ^= ends;
                while ends != 0 {
                    held[ends.trailing_zeros() as usize] = blocks;
                    ends &= ends - 1;
                }
                if holders == 0 {
                    break;
                }
            }
        }
        held
    }

    /// For changes of what `backend` holds, one after the other.
    pub(super) fn writer(&self, backend: usize) -> Writer<'_> {
        Writer { plane: &self.planes[backend / PLANE], bit: 1 << (backend % PLANE), shard: Locked::default() }
    }

    /// The memory of the tables, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.planes.iter().map(Plane::bytes).sum()
    }
}

/// Changes what a backend holds; the shard of the last block stays locked until one of another is changed.
pub(super) struct Writer<'a> {
    plane: &'a Plane,
    bit: u32,
    shard: Locked<RwLockWriteGuard<'a, HashTable<Holders>>>,
}

impl Writer<'_> {
    /// The backend holds the block from now on. Returns whether it did not before.
    pub(super) fn insert(&mut self, key: BlockKey) -> bool {
        let table = self.shard.of(key, |shard| self.plane.shards[shard].write());
        make_room(table, Holders::hash);
        match table.entry(key.0, |holders| holders.is_of(key), Holders::hash) {
            Entry::Occupied(mut entry) => {
                let before = entry.get().backends;
                entry.get_mut().backends |= self.bit;
                before & self.bit == 0
            }
            Entry::Vacant(entry) => {
                entry.insert(Holders { key, backends: self.bit });
                true
            }
        }
    }

    /// The backend holds the block no longer.
    pub(super) fn remove(&mut self, key: BlockKey) {
        let table = self.shard.of(key, |shard| self.plane.shards[shard].write());
        if let Ok(mut entry) = table.find_entry(key.0, |holders| holders.is_of(key)) {
            entry.get_mut().backends &= !self.bit;
            if entry.get().backends == 0 {
                entry.remove();
            }
        }
    }
}

/// The shard that was locked last; never two at a time.
struct Locked<G>(Option<(usize, G)>);

impl<G> Default for Locked<G> {
    fn default() -> Self {
        Self(None)
    }
}

impl<G> Locked<G> {
    /// The shard of a block, locked by `lock` if it is not yet.
    fn of(&mut self, key: BlockKey, lock: impl FnOnce(usize) -> G) -> &mut G {
        let shard = key.shard();
        if self.0.as_ref().is_none_or(|(locked, _)| *locked != shard) {
            self.0 = None;
            self.0 = Some((shard, lock(shard)));
        }
        &mut self.0.as_mut().expect("locked just now").1
    }
}

impl Plane {
    fn bytes(&self) -> usize {
        let tables: usize = self.shards.iter().map(|table| table.read().allocation_size()).sum();
        size_of_val(&*self.shards) + tables
    }
}

impl Holders {
    fn hash(&self) -> u64 {
        self.key.0
    }

    fn is_of(&self, key: BlockKey) -> bool {
        self.hash() == key.0
    }
}

#[cfg(test)]
impl Index {
    /// Every block with every backend that holds it, sorted.
    pub(super) fn entries(&self) -> Vec<(usize, u64)> {
        let mut entries = Vec::new();
        for (first, plane) in self.planes.iter().enumerate() {
            for shard in &*plane.shards {
                for Holders { key, backends } in shard.read().iter().copied() {
                    assert_ne!(backends, 0, "a block that nobody holds");
                    let holders = (0..PLANE).filter(|backend| backends & 1 << backend != 0);
                    entries.extend(holders.map(|backend| (first * PLANE + backend, key.0)));
                }
            }
        }
        entries.sort_unstable();
        entries
    }
}
