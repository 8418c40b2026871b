//! A list of what was used, from the youngest to the oldest, in one slab; blocks are found by their keys.
//!
//! Called by `cache.rs` alone, which bounds it. It knows the order and nothing of what it means.

use super::BlockKey;
use super::cache::Owner;
use hashbrown::HashTable;

/// No slot: the end of the list, of the free slots.
const NONE: u32 = u32::MAX;

/// What is known of a block, or of tokens that are not of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub(super) key: BlockKey,
    pub(super) tokens: u32,
    pub(super) owner: Owner,
    younger: u32,
    older: u32,
}

#[derive(Debug)]
pub(super) struct Lru {
    nodes: Vec<Node>,
    slots: HashTable<u32>,
    youngest: u32,
    oldest: u32,
    free: u32,
}

impl Lru {
    pub(super) fn new() -> Self {
        Self { nodes: Vec::new(), slots: HashTable::new(), youngest: NONE, oldest: NONE, free: NONE }
    }

    /// The slot of a block.
    pub(super) fn find(&self, key: BlockKey) -> Option<u32> {
        self.slots.find(key.0, |slot| self[*slot].key == key).copied()
    }

    /// The slot of the oldest.
    pub(super) fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// Adds a block as the youngest.
    pub(super) fn insert(&mut self, key: BlockKey, tokens: u32, owner: Owner) {
        let slot = self.push(key, tokens, owner);
        let Self { nodes, slots, .. } = self;
        slots.insert_unique(key.0, slot, |slot| nodes[*slot as usize].key.0);
    }

    /// Adds something as the youngest that is never looked for.
    pub(super) fn push(&mut self, key: BlockKey, tokens: u32, owner: Owner) -> u32 {
        let node = Node { key, tokens, owner, younger: NONE, older: NONE };
        let slot = if self.free == NONE {
            let slot =
                u32::try_from(self.nodes.len()).expect("4 billion blocks are more than fit into memory");
            self.nodes.push(node);
            slot
        } else {
            let slot = self.free;
            self.free = self[slot].older;
            self[slot] = node;
            slot
        };
        self.link(slot);
        slot
    }

    /// Makes the youngest of what is in a slot.
    pub(super) fn touch(&mut self, slot: u32) {
        self.unlink(slot);
        self.link(slot);
    }

    pub(super) fn remove(&mut self, slot: u32) -> Node {
        let node = self[slot];
        if let Ok(entry) = self.slots.find_entry(node.key.0, |other| *other == slot) {
            entry.remove();
        }
        self.unlink(slot);
        self[slot].older = self.free;
        self.free = slot;
        node
    }

    fn link(&mut self, slot: u32) {
        let older = std::mem::replace(&mut self.youngest, slot);
        self[slot].younger = NONE;
        self[slot].older = older;
        match older {
            NONE => self.oldest = slot,
            older => self[older].younger = slot,
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Node { younger, older, .. } = self[slot];
        match younger {
            NONE => self.youngest = older,
            younger => self[younger].older = older,
        }
        match older {
            NONE => self.oldest = younger,
            older => self[older].younger = younger,
        }
    }

    /// Blocks that can be found.
    pub(super) fn blocks(&self) -> usize {
        self.slots.len()
    }

    /// From the oldest to the youngest.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Node> {
        let at = |slot: u32| (slot != NONE).then(|| &self[slot]);
        std::iter::successors(at(self.oldest), move |node| at(node.younger))
    }

    /// The memory of slab and table.
    pub(super) fn bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>() + self.slots.allocation_size()
    }
}

impl std::ops::Index<u32> for Lru {
    type Output = Node;

    fn index(&self, slot: u32) -> &Node {
        &self.nodes[slot as usize]
    }
}

impl std::ops::IndexMut<u32> for Lru {
    fn index_mut(&mut self, slot: u32) -> &mut Node {
        &mut self.nodes[slot as usize]
    }
}
