//! Which backends hold a block, over all backends.
//!
//! Called by `state::blocks` alone: the caches write it, each only its own backend's bit and under its own lock; requests
//! read it. Bounded by what the caches hold: a block that nobody holds is not kept.

use super::BlockKey;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use parking_lot::RwLock;

/// Backends per plane: one bit of a `u64` each.
const PLANE: usize = u64::BITS as usize;
const SHARDS: usize = 64;

/// One plane of tables for each 64 backends.
#[derive(Debug)]
pub(super) struct Index {
    planes: Box<[Plane]>,
}

#[derive(Debug)]
struct Plane {
    shards: Box<[Shard]>,
}

/// A block and, bit by bit, who holds it; at least one backend does.
#[derive(Clone, Copy, Debug)]
struct Holders {
    key: BlockKey,
    backends: u64,
}

/// Tables are sharded to have short locks, and none that is busy with growing when it matters.
#[derive(Debug, Default)]
struct Shard(RwLock<HashTable<Holders>>);

impl Index {
    pub(super) fn new(backends: usize) -> Self {
        let plane = |_| Plane { shards: (0..SHARDS).map(|_| Shard::default()).collect() };
        Self { planes: (0..backends.div_ceil(PLANE)).map(plane).collect() }
    }

    /// How many of the keys each backend holds from the first on without a gap.
    pub(super) fn held(&self, keys: &[BlockKey], backends: usize) -> Vec<usize> {
        let mut held = vec![keys.len(); backends];
        for (plane, held) in self.planes.iter().zip(held.chunks_mut(PLANE)) {
            let mut all_so_far = u64::MAX >> (PLANE - held.len());
            for (blocks, key) in keys.iter().enumerate() {
                let all = all_so_far & plane.backends(*key);
                let mut ends = all_so_far ^ all;
                while ends != 0 {
                    held[ends.trailing_zeros() as usize] = blocks;
                    ends &= ends - 1;
                }
                all_so_far = all;
                if all == 0 {
                    break;
                }
            }
        }
        held
    }

    /// `backend` holds the block from now on.
    pub(super) fn insert(&self, key: BlockKey, backend: usize) {
        let mut table = self.planes[backend / PLANE].shard(key).write();
        match table.entry(key.0, |holders| holders.key == key, |holders| holders.key.0) {
            Entry::Occupied(mut entry) => entry.get_mut().backends |= bit(backend),
            Entry::Vacant(entry) => {
                entry.insert(Holders { key, backends: bit(backend) });
            }
        }
    }

    /// `backend` holds the block no longer.
    pub(super) fn remove(&self, key: BlockKey, backend: usize) {
        let mut table = self.planes[backend / PLANE].shard(key).write();
        if let Ok(mut entry) = table.find_entry(key.0, |holders| holders.key == key) {
            entry.get_mut().backends &= !bit(backend);
            if entry.get().backends == 0 {
                entry.remove();
            }
        }
    }

    /// The memory of the tables.
    pub(super) fn bytes(&self) -> usize {
        let shard = |Shard(table): &Shard| size_of::<Shard>() + table.read().allocation_size();
        self.planes.iter().map(|plane| plane.shards.iter().map(shard).sum::<usize>()).sum()
    }
}

impl Plane {
    fn backends(&self, key: BlockKey) -> u64 {
        let table = self.shard(key).read();
        table.find(key.0, |holders| holders.key == key).map_or(0, |holders| holders.backends)
    }

    /// By bits from the middle: the tables use the lowest and the highest.
    fn shard(&self, key: BlockKey) -> &RwLock<HashTable<Holders>> {
        &self.shards[(key.0 >> 32) as usize % SHARDS].0
    }
}

fn bit(backend: usize) -> u64 {
    1 << (backend % PLANE)
}
