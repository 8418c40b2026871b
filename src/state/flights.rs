//! Identical calls that are under way share one.
//!
//! Called by `background` before it tokenizes. Bounded by the calls in flight, which the caller bounds: an entry goes
//! when its call ends, or with the last one who waits for it. It keeps no answers and runs nothing by itself.

use futures::FutureExt;
use futures::future::{BoxFuture, WeakShared};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

/// The calls that are under way.
pub struct Flights<K: Eq + Hash, V> {
    calls: Arc<Mutex<Calls<K, V>>>,
}

struct Calls<K, V> {
    by_key: HashMap<K, Call<V>>,
    made: u64,
}

struct Call<V> {
    number: u64,
    answer: WeakShared<BoxFuture<'static, V>>,
}

/// A call's place among those under way, for the call to hold: it is given up when that ends or is dropped.
struct Place<K: Eq + Hash, V> {
    calls: Arc<Mutex<Calls<K, V>>>,
    key: K,
    number: u64,
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The answer of the call for `key` that is under way, else of the one that `call` makes.
    ///
    /// It moves on as long as somebody awaits it; when all have dropped what this returned, the call is dropped too.
    pub fn join<C, F>(&self, key: K, call: C) -> impl Future<Output = V> + Send + use<C, F, K, V>
    where
        C: FnOnce() -> F + Send + 'static,
        F: Future<Output = V> + Send,
    {
        let mut calls = self.calls.lock();
        if let Some(answer) = calls.by_key.get(&key).and_then(|call| call.answer.upgrade()) {
            return answer;
        }
        calls.made += 1;
        let number = calls.made;
        let place = Place { calls: Arc::clone(&self.calls), key: key.clone(), number };
        let answer = async move {
            let _until_the_end = place;
            call().await
        };
        let answer = answer.boxed().shared();
        if let Some(answer) = answer.downgrade() {
            calls.by_key.insert(key, Call { number, answer });
        }
        answer
    }
}

impl<K: Eq + Hash, V> Flights<K, V> {
    /// The calls that are under way.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.calls.lock().by_key.len()
    }
}

impl<K: Eq + Hash, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self { calls: Arc::new(Mutex::new(Calls { by_key: HashMap::new(), made: 0 })) }
    }
}

impl<K: Eq + Hash, V> fmt::Debug for Flights<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").field("entries", &self.entries()).finish()
    }
}

impl<K: Eq + Hash, V> Drop for Place<K, V> {
    fn drop(&mut self) {
        let mut calls = self.calls.lock();
        // Between the last one's leaving and this, somebody may have come and made the next call.
        if calls.by_key.get(&self.key).is_some_and(|call| call.number == self.number) {
            calls.by_key.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::future::{self, join_all};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::{Notify, oneshot};

    /// Calls that wait to be let go, and are counted when they are made and when they are gone.
    #[derive(Default)]
    struct Calling {
        flights: Flights<&'static str, usize>,
        made: Arc<AtomicUsize>,
        gone: Arc<AtomicUsize>,
        gate: Arc<Notify>,
    }

    struct Gone(Arc<AtomicUsize>);

    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Calling {
        fn join(&self, key: &'static str) -> impl Future<Output = usize> + Send + use<> {
            let (made, gate) = (Arc::clone(&self.made), Arc::clone(&self.gate));
            let gone = Gone(Arc::clone(&self.gone));
            self.flights.join(key, move || {
                let number = made.fetch_add(1, Ordering::SeqCst) + 1;
                async move {
                    let _gone = gone;
                    gate.notified().await;
                    number
                }
            })
        }

        fn made(&self) -> usize {
            self.made.load(Ordering::SeqCst)
        }
    }

    #[tokio::test]
    async fn all_who_ask_the_same_share_one_call() {
        let calling = Calling::default();
        let mut waiting = join_all((0..50).map(|_| calling.join("a")));
        assert!(future::poll_immediate(&mut waiting).await.is_none());
        assert_eq!((calling.made(), calling.flights.entries()), (1, 1));
        calling.gate.notify_one();
        assert_eq!(waiting.await, [1; 50]);
        assert_eq!((calling.made(), calling.flights.entries()), (1, 0));
    }

    #[tokio::test]
    async fn different_keys_make_different_calls() {
        let calling = Calling::default();
        let (one, other) = (calling.join("a"), calling.join("b"));
        assert_eq!(calling.flights.entries(), 2);
        let open = async { calling.gate.notify_waiters() };
        let (one, other, ()) = future::join3(one, other, open).await;
        assert_eq!([one, other], [1, 2]);
    }

    #[tokio::test]
    async fn after_the_end_the_next_call_is_made_anew() {
        let calling = Calling::default();
        for number in 1..4 {
            let call = calling.join("a");
            calling.gate.notify_one();
            assert_eq!(call.await, number);
            assert_eq!(calling.flights.entries(), 0);
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_not_fetched_yet_is_not_given_to_those_who_come_later() {
        let calling = Calling::default();
        let (first, slow) = (calling.join("a"), calling.join("a"));
        calling.gate.notify_one();
        assert_eq!(first.await, 1);
        let later = calling.join("a");
        calling.gate.notify_one();
        assert_eq!((later.await, slow.await), (2, 1));
    }

    #[tokio::test]
    async fn the_first_may_leave_without_harm_to_the_others() {
        let calling = Calling::default();
        let mut first = Box::pin(calling.join("a"));
        assert!(future::poll_immediate(&mut first).await.is_none(), "it drives the call");
        let mut second = tokio::task::JoinSet::new();
        second.spawn(calling.join("a"));
        tokio::task::yield_now().await;
        drop(first);
        assert_eq!(calling.gone.load(Ordering::SeqCst), 1, "only what the second would have called with");
        calling.gate.notify_one();
        assert_eq!(second.join_next().await.unwrap().unwrap(), 1);
        assert_eq!((calling.made(), calling.flights.entries()), (1, 0));
    }

    #[tokio::test]
    async fn a_call_that_all_have_left_is_dropped_and_forgotten() {
        let calling = Calling::default();
        let mut waiting = [Box::pin(calling.join("a")), Box::pin(calling.join("a"))];
        for one in &mut waiting {
            assert!(future::poll_immediate(one).await.is_none());
        }
        assert_eq!((calling.flights.entries(), calling.made()), (1, 1));
        drop(waiting);
        assert_eq!((calling.flights.entries(), calling.gone.load(Ordering::SeqCst)), (0, 2));
        let next = calling.join("a");
        calling.gate.notify_one();
        assert_eq!(next.await, 2);
    }

    #[tokio::test]
    async fn a_call_that_nobody_awaited_is_never_made() {
        let calling = Calling::default();
        drop(calling.join("a"));
        assert_eq!((calling.flights.entries(), calling.made()), (0, 0));
    }

    #[tokio::test]
    async fn a_call_that_panics_leaves_nothing_behind() {
        let flights: Arc<Flights<u8, u8>> = Arc::default();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(flights.join(1, || async { panic!("on purpose") }));
        assert!(tasks.join_next().await.unwrap().is_err());
        assert_eq!(flights.entries(), 0);
        assert_eq!(flights.join(1, || future::ready(2)).await, 2);
    }

    #[tokio::test]
    async fn a_call_may_wait_for_another() {
        let flights: Arc<Flights<u8, u8>> = Arc::default();
        let inner = Arc::clone(&flights);
        let outer = flights.join(1, move || inner.join(2, || future::ready(3)));
        assert_eq!((outer.await, flights.entries()), (3, 0));
    }

    #[test]
    fn the_end_of_a_call_that_was_left_does_not_remove_the_next() {
        let flights: Flights<u8, u8> = Flights::default();
        let next = flights.join(1, future::pending);
        drop(Place { calls: Arc::clone(&flights.calls), key: 1, number: 0 });
        assert_eq!(flights.entries(), 1);
        drop(next);
        assert_eq!(flights.entries(), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn nothing_is_left_after_many_came_and_went_at_once() {
        let flights: Arc<Flights<usize, usize>> = Arc::default();
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..64 {
            let flights = Arc::clone(&flights);
            tasks.spawn(async move {
                for round in 0..50 {
                    let key = round % 3;
                    let call = flights.join(key, move || async move {
                        tokio::task::yield_now().await;
                        key
                    });
                    if (task + round) % 4 == 0 {
                        assert!(future::poll_immediate(call).await.is_none_or(|answer| answer == key));
                    } else {
                        assert_eq!(call.await, key);
                    }
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
        assert_eq!(flights.entries(), 0);
    }

    #[tokio::test]
    async fn those_who_wait_in_other_tasks_are_woken() {
        let flights: Flights<u8, u8> = Flights::default();
        let (answer, answered) = oneshot::channel();
        let call = flights.join(1, move || async move { answered.await.unwrap() });
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(call);
        tasks.spawn(flights.join(1, future::pending));
        tokio::task::yield_now().await;
        answer.send(7).unwrap();
        assert_eq!(tasks.join_all().await, [7, 7]);
    }
}
