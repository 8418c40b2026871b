//! Which instance holds which chunk, by the rules that the recorded lookups show; shared by both mocks of LMCache.
//!
//! Tokens are cut into chunks of 256, the last one as long as what is left; a chunk's key depends on all before it. A
//! controller's lookup goes along its chunks to the first that nobody holds, and credits each to the instance that
//! registered it first: replicas are invisible. A coordinator's shows all holders of each full chunk. Bounded at a million chunks; what is admitted beyond is ignored.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// Tokens of a full chunk.
pub(crate) const CHUNK_TOKENS: usize = 256;
const CHUNKS_MAX: usize = 1_000_000;

/// An instance that has registered itself.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub(crate) id: String,
    pub(crate) registered: Duration,
    /// Chunks it holds.
    pub(crate) keys: usize,
}

#[derive(Debug, Clone)]
struct Holder {
    instance: String,
    location: String,
    tokens: usize,
}

/// What a lookup credits to one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credit {
    pub(crate) instance: String,
    pub(crate) location: String,
    /// Up to which token of the prompt.
    pub(crate) tokens: usize,
}

/// A full chunk of a prompt, and all who hold it as instance and location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) key: u64,
    /// Where it ends in the prompt.
    pub(crate) end: usize,
    pub(crate) holders: Vec<(String, String)>,
}

#[derive(Debug, Default)]
struct Pool {
    instances: Vec<Instance>,
    /// Holders of a chunk, in the order in which they registered it.
    chunks: HashMap<u64, Vec<Holder>>,
}

/// The chunks of all instances. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Chunks {
    pool: Arc<Mutex<Pool>>,
}

/// The chunks of a prompt: where each ends, and its key.
fn chunks<T: Hash>(tokens: &[T]) -> impl Iterator<Item = (usize, u64)> {
    tokens.chunks(CHUNK_TOKENS).scan((0, 0), |(end, key), chunk| {
        let mut hasher = DefaultHasher::new();
        (*key, chunk).hash(&mut hasher);
        *end += chunk.len();
        *key = hasher.finish();
        Some((*end, *key))
    })
}

impl Pool {
    fn register(&mut self, id: &str) {
        if !self.instances.iter().any(|instance| instance.id == id) {
            let registered = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.instances.push(Instance { id: id.to_owned(), registered, keys: 0 });
        }
    }

    /// Removes the holders that `gone` names, and returns their tokens.
    fn remove(&mut self, mut gone: impl FnMut(u64, &Holder) -> bool) -> usize {
        let mut tokens = 0;
        let instances = &mut self.instances;
        self.chunks.retain(|key, holders| {
            holders.retain(|holder| {
                let gone = gone(*key, holder);
                if gone {
                    tokens += holder.tokens;
                    if let Some(instance) =
                        instances.iter_mut().find(|instance| instance.id == holder.instance)
                    {
                        instance.keys -= 1;
                    }
                }
                !gone
            });
            !holders.is_empty()
        });
        tokens
    }
}

impl Chunks {
    /// Makes an instance known.
    pub fn register(&self, instance: &str) {
        self.pool.lock().register(instance);
    }

    /// Registers the chunks of a prompt, full ones and the tail, as held by an instance.
    pub fn admit(&self, instance: &str, location: &str, tokens: &[u32]) {
        let tokens: Vec<i64> = tokens.iter().map(|token| i64::from(*token)).collect();
        self.admit_any(instance, location, &tokens);
    }

    pub(crate) fn admit_any(&self, instance: &str, location: &str, tokens: &[i64]) {
        let mut pool = self.pool.lock();
        pool.register(instance);
        let (mut start, mut added) = (0, 0);
        for (end, key) in chunks(tokens) {
            if pool.chunks.len() >= CHUNKS_MAX && !pool.chunks.contains_key(&key) {
                break;
            }
            let holders = pool.chunks.entry(key).or_default();
            let known = |holder: &Holder| holder.instance == instance && holder.location == location;
            if !holders.iter().any(known) {
                let (instance, location) = (instance.to_owned(), location.to_owned());
                holders.push(Holder { instance, location, tokens: end - start });
                added += 1;
            }
            start = end;
        }
        if let Some(own) = pool.instances.iter_mut().find(|own| own.id == instance) {
            own.keys += added;
        }
    }

    pub(crate) fn instances(&self) -> Vec<Instance> {
        self.pool.lock().instances.clone()
    }

    /// Chunks that anybody holds.
    pub(crate) fn count(&self) -> usize {
        self.pool.lock().chunks.len()
    }

    pub(crate) fn knows(&self, instance: &str) -> bool {
        self.pool.lock().instances.iter().any(|own| own.id == instance)
    }

    /// Who holds the start of the prompt, in the order of their first credit.
    pub(crate) fn look_up(&self, tokens: &[i64]) -> Vec<Credit> {
        let pool = self.pool.lock();
        let mut credits: Vec<Credit> = Vec::new();
        for (tokens, key) in chunks(tokens) {
            let Some(first) = pool.chunks.get(&key).and_then(|holders| holders.first()) else {
                break;
            };
            let Holder { instance, location, .. } = first.clone();
            let credit = Credit { instance, location, tokens };
            match credits.iter_mut().find(|own| own.instance == credit.instance) {
                Some(own) => *own = credit,
                None => credits.push(credit),
            }
        }
        credits
    }

    /// The full chunks of the prompt with all their holders; the tail is left out.
    pub(crate) fn placements(&self, tokens: &[i64]) -> Vec<Placed> {
        let pool = self.pool.lock();
        let full = chunks(tokens).take_while(|(end, _)| end.is_multiple_of(CHUNK_TOKENS));
        full.map(|(end, key)| {
            let holders = pool.chunks.get(&key).into_iter().flatten();
            let holders = holders.map(|holder| (holder.instance.clone(), holder.location.clone()));
            Placed { key, end, holders: holders.collect() }
        })
        .collect()
    }

    /// How many tokens from the start of the prompt an instance holds at a location.
    pub(crate) fn held(&self, instance: &str, location: &str, tokens: &[i64]) -> usize {
        let pool = self.pool.lock();
        let holds = |key: &u64| {
            pool.chunks.get(key).is_some_and(|holders| {
                holders.iter().any(|holder| holder.instance == instance && holder.location == location)
            })
        };
        chunks(tokens).take_while(|(_, key)| holds(key)).last().map_or(0, |(end, _)| end)
    }

    /// Drops all that an instance holds at a location; how many tokens that was.
    pub(crate) fn clear(&self, instance: &str, location: &str) -> usize {
        self.pool.lock().remove(|_, holder| holder.instance == instance && holder.location == location)
    }

    /// Drops the chunks of a prompt from an instance; how many tokens that was.
    pub(crate) fn evict(&self, instance: &str, tokens: &[i64]) -> usize {
        let keys: Vec<u64> = chunks(tokens).map(|(_, key)| key).collect();
        self.pool.lock().remove(|key, holder| holder.instance == instance && keys.contains(&key))
    }

    /// Forgets the chunks and keeps the instances.
    pub(crate) fn forget(&self) {
        self.pool.lock().remove(|_, _| true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(from: u32, to: u32) -> Vec<u32> {
        (from..to).collect()
    }

    fn look_up(chunks: &Chunks, from: i64, to: i64) -> Vec<(String, usize)> {
        let credits = chunks.look_up(&(from..to).collect::<Vec<_>>());
        credits.into_iter().map(|credit| (credit.instance, credit.tokens)).collect()
    }

    #[test]
    fn a_chunk_is_credited_to_its_first_holder_only() {
        let chunks = Chunks::default();
        chunks.admit("a", "cpu", &range(0, 600));
        chunks.admit("b", "cpu", &range(0, 1100));
        assert_eq!(look_up(&chunks, 0, 1100), [("a".to_owned(), 512), ("b".to_owned(), 1100)]);
    }

    #[test]
    fn a_tail_matches_only_as_a_whole() {
        let chunks = Chunks::default();
        chunks.admit("a", "cpu", &range(0, 600));
        assert_eq!(look_up(&chunks, 0, 600), [("a".to_owned(), 600)]);
        assert_eq!(look_up(&chunks, 0, 601), [("a".to_owned(), 512)]);
        assert_eq!(look_up(&chunks, 0, 255), []);
    }

    #[test]
    fn a_cleared_instance_leaves_its_chunks_to_the_next_holder() {
        let chunks = Chunks::default();
        chunks.admit("a", "cpu", &range(0, 600));
        chunks.admit("b", "cpu", &range(0, 1100));
        assert_eq!(chunks.clear("a", "cpu"), 600);
        assert_eq!(look_up(&chunks, 0, 600), [("b".to_owned(), 512)]);
        assert_eq!(chunks.instances().iter().map(|instance| instance.keys).collect::<Vec<_>>(), [0, 5]);
    }

    #[test]
    fn every_holder_of_a_full_chunk_is_placed_and_the_tail_is_not() {
        let chunks = Chunks::default();
        chunks.admit("a", "cpu", &range(0, 600));
        chunks.admit("b", "disk", &range(0, 300));
        let placed = chunks.placements(&(0..600).collect::<Vec<_>>());
        let holder = |instance: &str, location: &str| (instance.to_owned(), location.to_owned());
        assert_eq!(placed.iter().map(|placed| placed.end).collect::<Vec<_>>(), [256, 512]);
        assert_eq!(placed[0].holders, [holder("a", "cpu"), holder("b", "disk")]);
        assert_eq!(placed[1].holders, [holder("a", "cpu")]);
    }

    #[test]
    fn the_same_chunk_twice_counts_once() {
        let chunks = Chunks::default();
        chunks.admit("a", "cpu", &range(0, 512));
        chunks.admit("a", "cpu", &range(0, 512));
        assert_eq!(chunks.instances()[0].keys, 2);
        assert_eq!(chunks.evict("a", &(0..512).collect::<Vec<_>>()), 512);
        assert_eq!(look_up(&chunks, 0, 512), []);
    }
}
