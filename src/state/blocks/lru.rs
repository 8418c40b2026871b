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

/// A run: blocks of a prompt that follow one another there and here, and have in common all that is known of them. Or tokens
/// that are not of a block.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// In the order of the prompt, so from the youngest to the oldest.
    keys: Vec<BlockKey>,
    younger: Slot,
    older: Slot,
    /// The number of the try that brought it.
    pub(super) born: u32,
    /// Of each block.
    pub(super) tokens: u16,
    pub(super) tries: Tries,
}

impl Node {
    /// Blocks, or tokens without any.
    #[inline]
    pub(super) fn new(keys: &[BlockKey], tokens: u16, tries: Tries, born: u32) -> Self {
        Self { keys: keys.to_vec(), younger: Slot::NONE, older: Slot::NONE, born, tokens, tries }
    }

    /// Its blocks in the order of the prompt; none where it is tokens alone.
    pub(super) fn keys(&self) -> &[BlockKey] {
        &self.keys
    }

    /// The tokens of all of it.
    pub(super) fn all_tokens(&self) -> usize {
        self.keys.len().max(1) * usize::from(self.tokens)
    }

    /// The slot of the node that is just younger.
    pub(super) fn younger(&self) -> Slot {
        self.younger
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

impl Default for Slot {
    fn default() -> Self {
        Self::NONE
    }
}

#[derive(Debug, Default)]
pub(super) struct Lru {
    nodes: Slab,
    blocks: usize,
    /// The blocks that the runs have memory for.
    room: usize,
    /// The blocks that the index has no room for, mostly because they are in another backend's list as well.
    listed: [HashTable<(BlockKey, Slot)>; SHARDS],
    youngest: Slot,
    oldest: Slot,
    /// The free slots, each naming the next one as the older.
    free: Slot,
}

impl Lru {
    /// The slot of a block that is listed here.
    pub(super) fn find(&self, key: BlockKey) -> Option<Slot> {
        self.listed[shard(key)].find(key.0, |(listed, _)| *listed == key).map(|(_, slot)| *slot)
    }

    /// The node in this slot, if there is any.
    pub(super) fn at(&mut self, slot: Slot) -> Option<&mut Node> {
        slot.some().map(|slot| &mut self.nodes[slot])
    }

    /// The slot of the oldest.
    pub(super) fn oldest(&self) -> Option<Slot> {
        self.oldest.some()
    }

    /// Where the next node will be.
    pub(super) fn vacant(&self) -> Slot {
        self.free.some().unwrap_or_else(|| self.nodes.end())
    }

    /// Adds a node as the youngest, at the slot that was vacant.
    pub(super) fn insert(&mut self, node: Node) {
        self.blocks += node.keys.len();
        let slot = self.place(node);
        self.link(slot, Slot::NONE, self.youngest);
    }

    /// Makes two of a run, of which the older one begins with the block that was the `at`th. Returns where that is.
    pub(super) fn split(&mut self, slot: Slot, at: usize) -> Slot {
        let Node { older, born, tokens, tries, ref mut keys, .. } = self.nodes[slot];
        let keys = keys.split_off(at);
        let rest = self.place(Node { keys, younger: slot, older, born, tokens, tries });
        self.link(rest, slot, older);
        rest
    }

    fn place(&mut self, node: Node) -> Slot {
        self.room += node.keys.capacity();
        let slot = self.vacant();
        if slot == self.free {
            self.free = self.nodes[slot].older;
        } else {
            self.nodes.push();
        }
        self.nodes[slot] = node;
        slot
    }

    /// Puts a node between two others.
    fn link(&mut self, slot: Slot, younger: Slot, older: Slot) {
        (self.nodes[slot].younger, self.nodes[slot].older) = (younger, older);
        self.join(younger, slot);
        self.join(slot, older);
    }

    /// One node comes after the other; at an end of the list, one of them is none.
    fn join(&mut self, younger: Slot, older: Slot) {
        match younger.some() {
            Some(younger) => self.nodes[younger].older = older,
            None => self.youngest = older,
        }
        match older.some() {
            Some(older) => self.nodes[older].younger = younger,
            None => self.oldest = younger,
        }
    }

    /// A block is to be found here by its key.
    pub(super) fn list(&mut self, key: BlockKey, slot: Slot) {
        let table = &mut self.listed[shard(key)];
        let hash = |(key, _): &(BlockKey, Slot)| key.0;
        make_room(table, hash);
        table.insert_unique(key.0, (key, slot), hash);
    }

    /// It is to be found here no longer.
    pub(super) fn unlist(&mut self, key: BlockKey) {
        if let Ok(entry) = self.listed[shard(key)].find_entry(key.0, |(listed, _)| *listed == key) {
            entry.remove();
        }
    }

    /// Makes a node and all up to a younger one the youngest, in their order.
    pub(super) fn touch(&mut self, oldest: Slot, youngest: Slot) {
        let younger = self.nodes[youngest].younger;
        if younger == Slot::NONE {
            return;
        }
        self.join(younger, self.nodes[oldest].older);
        self.join(oldest, self.youngest);
        self.join(Slot::NONE, youngest);
    }

    /// Removes the oldest `count` blocks of a run, and a node of which nothing is left. Its slot is free then. `is_listed` is told
    /// of each block, and says whether it is to be found here.
    pub(super) fn remove_oldest(
        &mut self,
        slot: Slot,
        count: usize,
        mut is_listed: impl FnMut(BlockKey) -> bool,
    ) {
        let mut keys = std::mem::take(&mut self.nodes[slot].keys);
        for key in keys.drain(keys.len() - count..).rev() {
            if is_listed(key) {
                self.unlist(key);
            }
        }
        self.blocks -= count;
        if keys.is_empty() {
            self.room -= keys.capacity();
            let Node { younger, older, .. } = std::mem::take(&mut self.nodes[slot]);
            self.join(younger, older);
            self.nodes[slot].older = std::mem::replace(&mut self.free, slot);
        } else {
            self.nodes[slot].keys = keys;
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

    /// The memory of slab, runs and tables, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let runs = self.room * size_of::<BlockKey>();
        self.nodes.bytes() + runs + self.listed.iter().map(HashTable::allocation_size).sum::<usize>()
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

/// To change what is known of a node.
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
    /// The slot of the next node.
    fn end(&self) -> Slot {
        Slot(u32::try_from(self.nodes).expect("160 GB of nodes are more than fit"))
    }

    fn push(&mut self) {
        if self.nodes == self.chunks.len() * CHUNK {
            self.chunks.push(Box::new(std::array::from_fn(|_| Node::default())));
        }
        self.nodes += 1;
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
        assert_eq!(self.blocks(), self.iter().map(|node| node.keys.len()).sum::<usize>());
        assert_eq!(self.room, self.iter().map(|node| node.keys.capacity()).sum::<usize>());
        assert!(self.iter().all(|node| node.keys.is_empty() == (node.tries == Tries::SPENT)));
        let listed = self.listed.iter().flatten();
        for (key, slot) in listed {
            assert!(self[*slot].keys.contains(key) && from_oldest.contains(slot));
        }
        let slots = self.nodes.nodes;
        assert_eq!(from_oldest.len() + follow(self.free, |node| node.older).len(), slots);
    }
}
