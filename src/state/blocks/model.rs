//! The shadows of the caches beside a naive model, a list of which every step looks at all: whatever is done, both say the
//! same.

use super::cache::SPENT_TOKENS_MIN;
use super::tests::chain;
use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What the naive model knows of a block, or of spent tokens.
#[derive(Clone, Debug)]
struct Item {
    key: Option<BlockKey>,
    tokens: usize,
    expecting: BTreeSet<usize>,
    confirmed: bool,
}

/// One backend's cache as a list, the youngest first.
#[derive(Debug)]
struct Model {
    items: Vec<Item>,
    gathered: usize,
    capacity: usize,
}

impl Model {
    fn bring(&mut self, keys: &[BlockKey], tokens: usize, by: Option<usize>) -> u64 {
        for key in keys.iter().take(self.capacity / tokens).rev() {
            let known = self.items.iter().position(|item| item.key == Some(*key));
            let new = || Item { key: Some(*key), tokens, expecting: BTreeSet::new(), confirmed: false };
            let mut item = known.map_or_else(new, |known| self.items.remove(known));
            item.tokens = tokens;
            item.expecting.extend(by);
            item.confirmed |= by.is_none();
            self.items.insert(0, item);
        }
        self.evict()
    }

    fn fail(&mut self, number: usize) -> u64 {
        for item in &mut self.items {
            item.expecting.remove(&number);
        }
        self.retain(|item| item.confirmed || !item.expecting.is_empty())
    }

    fn retain(&mut self, keep: impl Fn(&Item) -> bool) -> u64 {
        let before = self.items.len();
        self.items.retain(|item| item.key.is_none() || keep(item));
        (before - self.items.len()) as u64
    }

    fn spend(&mut self, tokens: usize) -> u64 {
        self.gathered += tokens;
        if self.gathered >= SPENT_TOKENS_MIN {
            let tokens = std::mem::take(&mut self.gathered);
            self.items.insert(0, Item { key: None, tokens, expecting: BTreeSet::new(), confirmed: false });
        }
        self.evict()
    }

    fn tokens(&self) -> usize {
        self.items.iter().map(|item| item.tokens).sum::<usize>() + self.gathered
    }

    fn evict(&mut self) -> u64 {
        let mut evicted = 0;
        while self.tokens() > self.capacity {
            let over = self.tokens() - self.capacity;
            match self.items.pop() {
                Some(mut item) if item.key.is_none() && item.tokens > over => {
                    item.tokens -= over;
                    self.items.push(item);
                }
                Some(item) => evicted += u64::from(item.key.is_some()),
                None => self.gathered -= over,
            }
        }
        evicted
    }

    fn held(&self, keys: &[BlockKey]) -> usize {
        keys.iter().take_while(|key| self.items.iter().any(|item| item.key == Some(**key))).count()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Expect { backend: usize, symbols: Vec<u64>, block_tokens: usize },
    Confirm { which: usize },
    End { which: usize },
    Spend { backend: usize, tokens: usize },
    Truncate { backend: usize, symbols: Vec<u64>, held: usize },
    Clear { backend: usize },
    SetCapacity { backend: usize, tokens: usize },
}

/// On both sides of where one plane of the index ends.
const BACKENDS: [usize; 3] = [0, 31, 32];
const CAPACITY: usize = 3000;

fn step() -> impl Strategy<Value = Step> {
    let backend = || prop::sample::select(BACKENDS.to_vec());
    let symbols = || prop::collection::vec(0_u64..2, 0..8);
    prop_oneof![
        10 => (backend(), symbols(), 1_usize..600)
            .prop_map(|(backend, symbols, block_tokens)| Step::Expect { backend, symbols, block_tokens }),
        4 => (0_usize..100).prop_map(|which| Step::Confirm { which }),
        4 => (0_usize..100).prop_map(|which| Step::End { which }),
        3 => (backend(), 0_usize..700).prop_map(|(backend, tokens)| Step::Spend { backend, tokens }),
        2 => (backend(), symbols(), 0_usize..8)
            .prop_map(|(backend, symbols, held)| Step::Truncate { backend, symbols, held }),
        1 => backend().prop_map(|backend| Step::Clear { backend }),
        1 => (backend(), 0_usize..CAPACITY * 2)
            .prop_map(|(backend, tokens)| Step::SetCapacity { backend, tokens }),
    ]
}

/// A try that is in flight at both.
struct Sent {
    number: usize,
    backend: usize,
    keys: Arc<[BlockKey]>,
    block_tokens: usize,
    confirmed: bool,
    expected: Expected,
}

/// What is tested beside the model, and what should have gone: evicted, withdrawn, truncated.
struct Both {
    blocks: Arc<Blocks>,
    models: BTreeMap<usize, Model>,
    tries: Vec<Sent>,
    begun: usize,
    gone: [u64; 3],
}

impl Both {
    fn new() -> Self {
        let models =
            BACKENDS.map(|backend| (backend, Model { items: Vec::new(), gathered: 0, capacity: CAPACITY }));
        let blocks = Arc::new(Blocks::new(&[CAPACITY; 33]));
        Self { blocks, models: models.into(), tries: Vec::new(), begun: 0, gone: [0; 3] }
    }

    fn model(&mut self, backend: usize) -> &mut Model {
        self.models.get_mut(&backend).unwrap()
    }

    fn step(&mut self, step: Step) {
        let (mut evicted, mut withdrawn, mut truncated) = (0, 0, 0);
        match step {
            Step::Expect { backend, symbols, block_tokens } => {
                self.begun += 1;
                let (number, keys) = (self.begun, chain(symbols));
                let expected = self.blocks.expect(backend, &keys, block_tokens);
                evicted = self.model(backend).bring(&keys, block_tokens, Some(number));
                self.tries.push(Sent { number, backend, keys, block_tokens, confirmed: false, expected });
            }
            Step::Confirm { which } => {
                let at = which % self.tries.len().max(1);
                if let Some(sent) = self.tries.get_mut(at) {
                    sent.expected.confirm();
                    if !std::mem::replace(&mut sent.confirmed, true) {
                        let model = self.models.get_mut(&sent.backend).unwrap();
                        evicted = model.bring(&sent.keys, sent.block_tokens, None);
                    }
                }
            }
            Step::End { which } => {
                if !self.tries.is_empty() {
                    let Sent { number, backend, confirmed, expected, .. } =
                        self.tries.remove(which % self.tries.len());
                    drop(expected);
                    if !confirmed {
                        withdrawn = self.model(backend).fail(number);
                    }
                }
            }
            Step::Spend { backend, tokens } => {
                self.blocks.spend(backend, tokens);
                let tokens = tokens.min(self.model(backend).capacity);
                evicted = self.model(backend).spend(tokens);
            }
            Step::Truncate { backend, symbols, held } => {
                let keys = chain(symbols);
                self.blocks.truncate(backend, &keys, held);
                for key in keys.iter().skip(held).rev() {
                    let items = &self.model(backend).items;
                    let Some(item) = items.iter().find(|item| item.key == Some(*key)) else { continue };
                    if !item.confirmed {
                        break;
                    }
                    truncated += self.model(backend).retain(|item| item.key != Some(*key));
                }
            }
            Step::Clear { backend } => {
                self.blocks.clear(backend);
                let capacity = self.model(backend).capacity;
                *self.model(backend) = Model { items: Vec::new(), gathered: 0, capacity };
            }
            Step::SetCapacity { backend, tokens } => {
                self.blocks.set_capacity(backend, tokens);
                self.model(backend).capacity = tokens;
                evicted = self.model(backend).evict();
            }
        }
        self.gone = [self.gone[0] + evicted, self.gone[1] + withdrawn, self.gone[2] + truncated];
    }

    fn compare(&self) {
        for (backend, model) in &self.models {
            let blocks: Vec<_> = self.blocks.caches[*backend].lock().check();
            let keys = |item: &Item| item.key.map(|key| (key, item.confirmed));
            assert_eq!(blocks, model.items.iter().rev().filter_map(keys).collect::<Vec<_>>());
            assert_eq!(self.blocks.blocks(*backend), blocks.len());
            assert_eq!(self.blocks.tokens(*backend), model.tokens());
            for sent in &self.tries {
                assert_eq!(self.blocks.held(&sent.keys)[*backend], model.held(&sent.keys));
            }
        }
        let gone = [self.blocks.evicted(), self.blocks.withdrawn(), self.blocks.truncated()];
        assert_eq!(gone, self.gone);
    }
}

/// Every block with the one before it, for all prompts of up to seven blocks.
fn parents() -> HashMap<BlockKey, BlockKey> {
    let all = (0_u64..1 << 7).map(|bits| chain((0..7).map(|block| bits >> block & 1)));
    all.flat_map(|keys| keys.windows(2).map(|pair| (pair[1], pair[0])).collect::<Vec<_>>()).collect()
}

proptest! {
    #[test]
    fn it_holds_what_a_naive_list_would_hold(steps in prop::collection::vec(step(), 1..60)) {
        let mut both = Both::new();
        for step in steps {
            both.step(step);
            both.compare();
        }
        both.blocks.check();
    }

    #[test]
    fn a_block_is_younger_than_those_that_extend_it_and_only_what_the_engine_side_denies_makes_holes(
        steps in prop::collection::vec(step(), 1..60),
        denials in any::<bool>(),
    ) {
        let (mut both, parents) = (Both::new(), parents());
        for step in steps.into_iter().filter(|step| denials || !matches!(step, Step::Truncate { .. })) {
            both.step(step);
            for backend in BACKENDS {
                let blocks = both.blocks.caches[backend].lock().check();
                let ages: HashMap<_, _> = blocks.iter().rev().map(|(key, _)| *key).zip(0..).collect();
                for (child, age) in &ages {
                    let Some(parent) = parents.get(child) else { continue };
                    prop_assert!(ages.get(parent).map_or(denials, |parent| parent < age));
                }
            }
        }
    }
}
