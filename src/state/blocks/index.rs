//! Which backends hold a block, over all backends.
//!
//! Called by `state::blocks` alone: the caches write it, each only its own backend's bit and under its own lock; requests
//! read it. Bounded by what the caches hold: a block that nobody holds is not kept. It knows no order and no tokens.

use super::BlockKey;
use super::lru::Slot;
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
struct Holders {
    key: BlockKey,
    backends: u32,
    place: Place,
}

/// Where a block is in the list of one of its holders, mostly the only one: so that list needs no table of its own for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Place(u32);

impl Place {
    const NONE: Self = Self(u32::MAX);
    /// Behind them, the holder's bit.
    const SLOT_BITS: u32 = u32::BITS - PLANE.ilog2();

    /// None where the slot is beyond what there is room for.
    fn new(bit: u32, Slot(slot): Slot) -> Self {
        let place = Self(bit.trailing_zeros() << Self::SLOT_BITS | slot);
        if slot >> Self::SLOT_BITS == 0 { place } else { Self::NONE }
    }

    fn of(self, bit: u32) -> Option<Slot> {
        let is_of = self != Self::NONE && self.0 >> Self::SLOT_BITS == bit.trailing_zeros();
        is_of.then_some(Slot(self.0 & ((1 << Self::SLOT_BITS) - 1)))
    }
}

/// What the index says to a backend of a block.
#[derive(Clone, Copy, Debug)]
pub(super) enum Found {
    /// The backend does not hold it.
    Nothing,
    /// It does, and this is where in its list.
    At(Slot),
    /// It does, and its list knows where.
    Listed,
}

/// What came of holding a block.
#[derive(Clone, Copy, Debug)]
pub(super) enum Held {
    /// The backend held it before.
    Before(Found),
    /// It did not.
    Placed,
    /// It did not, and the list is to remember where it is: the index has no room for it.
    Unplaced,
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
    /// The backend holds the block from now on; in `vacant`, where it did not before.
    #[inline]
    pub(super) fn hold(&mut self, key: BlockKey, vacant: Slot) -> Held {
        let table = self.shard.of(key, |shard| self.plane.shards[shard].write());
        make_room(table, Holders::hash);
        let place = Place::new(self.bit, vacant);
        let holders = match table.entry(key.0, |holders| holders.is_of(key), Holders::hash) {
            Entry::Vacant(entry) => {
                entry.insert(Holders { key, backends: self.bit, place });
                return if place == Place::NONE { Held::Unplaced } else { Held::Placed };
            }
            Entry::Occupied(entry) => entry.into_mut(),
        };
        match holders.found(self.bit) {
            Found::Nothing => {}
            found => return Held::Before(found),
        }
        holders.backends |= self.bit;
        if holders.place != Place::NONE || place == Place::NONE {
            return Held::Unplaced;
        }
        holders.place = place;
        Held::Placed
    }

    /// A block that the backend holds is now in another slot. Whether the index knows; else the list is to remember it.
    pub(super) fn move_to(&mut self, key: BlockKey, slot: Slot) -> bool {
        let table = self.shard.of(key, |shard| self.plane.shards[shard].write());
        let holders = table.find_mut(key.0, |holders| holders.is_of(key));
        let Some(holders) = holders.filter(|holders| holders.place.of(self.bit).is_some()) else {
            return false;
        };
        holders.place = Place::new(self.bit, slot);
        holders.place != Place::NONE
    }

    /// Unlocks the shard of the last block: something follows that is none of the index's business.
    pub(super) fn unlock(&mut self) {
        self.shard = Locked::default();
    }

    /// Whether the backend holds the block.
    pub(super) fn find(&mut self, key: BlockKey) -> Found {
        let table = self.shard.of(key, |shard| self.plane.shards[shard].write());
        let holders = table.find(key.0, |holders| holders.is_of(key));
        holders.map_or(Found::Nothing, |holders| holders.found(self.bit))
    }

    /// The backend holds the block no longer. Returns what was found.
    #[inline]
    pub(super) fn remove(&mut self, key: BlockKey) -> Found {
        let table = self.shard.of(key, |shard| self.plane.shards[shard].write());
        let Ok(mut entry) = table.find_entry(key.0, |holders| holders.is_of(key)) else {
            return Found::Nothing;
        };
        let holders = entry.get_mut();
        let found = holders.found(self.bit);
        holders.backends &= !self.bit;
        if holders.backends == 0 {
            entry.remove();
        } else if matches!(found, Found::At(_)) {
            holders.place = Place::NONE;
        }
        found
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

    fn found(&self, bit: u32) -> Found {
        match self.place.of(bit) {
            Some(slot) => Found::At(slot),
            None if self.backends & bit != 0 => Found::Listed,
            None => Found::Nothing,
        }
    }
}

#[cfg(test)]
impl Index {
    /// Every block with every backend that holds it, sorted.
    pub(super) fn entries(&self) -> Vec<(usize, u64)> {
        let mut entries = Vec::new();
        for (first, plane) in self.planes.iter().enumerate() {
            for shard in &*plane.shards {
                for Holders { key, backends, .. } in shard.read().iter().copied() {
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
