//! A list of what was used, from the youngest to the oldest, in one slab. Where a block is in it the index knows, or a table here.
//!
//! Called by `cache.rs` alone, which bounds it. It never gives memory back, but is dropped as a whole. It knows the order and
//! nothing of what it means.

use super::BlockKey;
use super::cache::Tries;
use super::table::make_room;
use hashbrown::HashTable;
use std::ops;

/// Nodes are allocated by so many, so that none is ever moved.
const CHUNK: usize = 256;
/// So many tables that one which grows is done soon.
const SHARDS: usize = 16;

/// A block, or tokens that are not of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) key: BlockKey,
    younger: Slot,
    older: Slot,
    /// The number of the try that brought it.
    pub(super) born: u32,
    pub(super) tokens: u16,
    pub(super) tries: Tries,
}

impl Node {
    #[inline]
    pub(super) fn new(key: BlockKey, tokens: u16, tries: Tries, born: u32) -> Self {
        Self { key, younger: Slot::NONE, older: Slot::NONE, born, tokens, tries }
    }

    fn is_block(&self) -> bool {
        self.tries != Tries::SPENT
    }
}

/// Where a node is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Slot(pub(super) u32);

impl Slot {
    pub(super) const NONE: Self = Self(u32::MAX);

    fn some(self) -> Option<Self> {
        (self != Self::NONE).then_some(self)
    }
}

#[derive(Debug)]
pub(super) struct Lru {
    nodes: Slab,
    blocks: usize,
    /// The blocks that the index has no room for, mostly because they are in another backend's list as well.
    listed: [HashTable<Slot>; SHARDS],
    youngest: Slot,
    oldest: Slot,
    /// The free slots, each naming the next one as the older.
    free: Slot,
}

impl Lru {
    pub(super) fn new() -> Self {
        Self {
            nodes: Slab::default(),
            blocks: 0,
            listed: Default::default(),
            youngest: Slot::NONE,
            oldest: Slot::NONE,
            free: Slot::NONE,
        }
    }

    /// The slot of a block that is listed here.
    pub(super) fn find(&self, key: BlockKey) -> Option<Slot> {
        self.listed[shard(key)].find(key.0, |slot| self.nodes[*slot].key == key).copied()
    }

    /// Whether it is this block that is in a slot.
    pub(super) fn is_at(&self, key: BlockKey, slot: Slot) -> bool {
        slot.some().is_some_and(|slot| self.nodes[slot].key == key && self.nodes[slot].is_block())
    }

    /// The slot of the oldest.
    pub(super) fn oldest(&self) -> Option<Slot> {
        self.oldest.some()
    }

    /// Adds a node as the youngest. Returns where.
    #[inline]
    pub(super) fn insert(&mut self, node: Node) -> Slot {
        let slot = if let Some(slot) = self.free.some() {
            self.free = self.nodes[slot].older;
            slot
        } else {
            self.nodes.push()
        };
        let older = std::mem::replace(&mut self.youngest, slot);
        self.nodes[slot] = Node { older, ..node };
        match older.some() {
            Some(older) => self.nodes[older].younger = slot,
            None => self.oldest = slot,
        }
        self.blocks += usize::from(node.is_block());
        slot
    }

    /// A block is to be found here by its key.
    pub(super) fn list(&mut self, slot: Slot) {
        let Self { nodes, listed, .. } = self;
        let table = &mut listed[shard(nodes[slot].key)];
        let hash = |slot: &Slot| nodes[*slot].key.0;
        make_room(table, hash);
        table.insert_unique(hash(&slot), slot, hash);
    }

    /// It is to be found here no longer.
    pub(super) fn unlist(&mut self, slot: Slot) {
        let key = self.nodes[slot].key;
        if let Ok(entry) = self.listed[shard(key)].find_entry(key.0, |other| *other == slot) {
            entry.remove();
        }
    }

    /// The slot of the node that is just younger.
    pub(super) fn younger(&self, slot: Slot) -> Slot {
        self.nodes[slot].younger
    }

    /// Makes a node and all up to a younger one the youngest, in their order.
    pub(super) fn touch(&mut self, oldest: Slot, youngest: Slot) {
        let Some(younger) = self.nodes[youngest].younger.some() else { return };
        let older = self.nodes[oldest].older;
        self.nodes[younger].older = older;
        match older.some() {
            Some(older) => self.nodes[older].younger = younger,
            None => self.oldest = younger,
        }
        let before = std::mem::replace(&mut self.youngest, youngest);
        self.nodes[before].younger = oldest;
        self.nodes[oldest].older = before;
        self.nodes[youngest].younger = Slot::NONE;
    }

    /// Removes a node. Its slot is free then.
    pub(super) fn remove(&mut self, slot: Slot) {
        self.blocks -= usize::from(self.nodes[slot].is_block());
        self.unlink(slot);
        self.nodes[slot].older = std::mem::replace(&mut self.free, slot);
    }

    fn unlink(&mut self, slot: Slot) {
        let Node { younger, older, .. } = self.nodes[slot];
        match younger.some() {
            Some(younger) => self.nodes[younger].older = older,
            None => self.youngest = older,
        }
        match older.some() {
            Some(older) => self.nodes[older].younger = younger,
            None => self.oldest = younger,
        }
    }

    /// How many blocks there are.
    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// All nodes, from the oldest to the youngest.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Node> {
        let node = |slot: Slot| slot.some().map(|slot| &self.nodes[slot]);
        std::iter::successors(node(self.oldest), move |last| node(last.younger))
    }

    /// The memory of slab and tables, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.nodes.bytes() + self.listed.iter().map(HashTable::allocation_size).sum::<usize>()
    }
}

fn shard(key: BlockKey) -> usize {
    key.shard() * SHARDS / BlockKey::SHARDS
}

impl ops::Index<Slot> for Lru {
    type Output = Node;

    fn index(&self, slot: Slot) -> &Node {
        &self.nodes[slot]
    }
}

/// To change what is known of a node, but neither its key nor whether it is a block.
impl ops::IndexMut<Slot> for Lru {
    fn index_mut(&mut self, slot: Slot) -> &mut Node {
        &mut self.nodes[slot]
    }
}

/// Nodes in chunks.
#[derive(Debug, Default)]
struct Slab {
    chunks: Vec<Box<[Node; CHUNK]>>,
    nodes: usize,
}

impl Slab {
    fn push(&mut self) -> Slot {
        let slot = Slot(u32::try_from(self.nodes).expect("100 GB of nodes are more than fit"));
        if self.nodes == self.chunks.len() * CHUNK {
            self.chunks.push(Box::new([Node::new(BlockKey(0), 0, Tries::SPENT, 0); CHUNK]));
        }
        self.nodes += 1;
        slot
    }

    fn bytes(&self) -> usize {
        self.chunks.capacity() * size_of::<Box<[Node; CHUNK]>>()
            + self.chunks.len() * CHUNK * size_of::<Node>()
    }
}

impl ops::Index<Slot> for Slab {
    type Output = Node;

    fn index(&self, Slot(slot): Slot) -> &Node {
        &self.chunks[slot as usize / CHUNK][slot as usize % CHUNK]
    }
}

impl ops::IndexMut<Slot> for Slab {
    fn index_mut(&mut self, Slot(slot): Slot) -> &mut Node {
        &mut self.chunks[slot as usize / CHUNK][slot as usize % CHUNK]
    }
}

#[cfg(test)]
impl Lru {
    /// The list is whole in both directions, every block is found, and every slot is in the list or free.
    pub(super) fn check(&self) {
        let follow = |first: Slot, next: fn(&Node) -> Slot| {
            std::iter::successors(first.some(), move |slot| next(&self[*slot]).some()).collect::<Vec<_>>()
        };
        let from_oldest = follow(self.oldest, |node| node.younger);
        let mut from_youngest = follow(self.youngest, |node| node.older);
        from_youngest.reverse();
        assert_eq!(from_oldest, from_youngest);
        let blocks = from_oldest.iter().filter(|slot| self[**slot].is_block());
        assert_eq!(self.blocks(), blocks.count());
        let mut listed = self.listed.iter().flatten();
        assert!(listed.all(|slot| self.find(self[*slot].key) == Some(*slot) && from_oldest.contains(slot)));
        let slots = self.nodes.nodes;
        assert_eq!(from_oldest.len() + follow(self.free, |node| node.older).len(), slots);
    }
}
