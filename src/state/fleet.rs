//! The backends of a cluster: their addresses, whether they can take requests, and exact books of what was sent to each.
//!
//! Written by `proxy` (a [`Lease`] per try) and by `background` (health and resolved addresses, which mirror Pingora's own
//! view, so that there is one truth); read by `proxy::peer` and `admin`; `replay` keeps the same books with simulated time.
//! It decides nothing.

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// A stream teaches how fast its backend computes prompts only if at least this many tokens were waited for: below, the time
/// is mostly something else.
const RATE_TOKENS_MIN: usize = 256;
/// The share of the newest stream in the learned rate.
const RATE_SHARE: f64 = 0.1;

/// One engine that we know.
#[derive(Debug)]
pub struct Backend {
    /// The name by which configuration, metrics and logs know it.
    pub id: String,
    /// `host:port` as configured.
    pub address: String,
    /// Its share of traffic under the weighted policies.
    pub weight: usize,
    /// Its place in [`Fleet::backends`].
    pub index: usize,
    resolved: ArcSwapOption<SocketAddr>,
    is_resolved: AtomicBool,
    absent: [AtomicBool; Absence::ALL.len()],
    returns: AtomicUsize,
    requests: AtomicUsize,
    pending_tokens: AtomicUsize,
    /// The bits of an `f64`; 0 = nothing learned yet.
    prefill_rate: AtomicU64,
    predictions: AtomicUsize,
    predicted: Mutex<Vec<Predicted>>,
}

/// Why a backend takes no requests now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Absence {
    /// Its health checks fail.
    Unhealthy,
    /// Its answers were failures for a while.
    Ejected,
    /// It is to end, and takes nothing new.
    Draining,
    /// Its model is not in memory.
    Sleeping,
}

impl Absence {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 4] = [Self::Unhealthy, Self::Ejected, Self::Draining, Self::Sleeping];

    /// Its name in answers of the admin listener.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unhealthy => "unhealthy",
            Self::Ejected => "ejected",
            Self::Draining => "draining",
            Self::Sleeping => "sleeping",
        }
    }
}

/// Where a backend stands in its fleet; carried by Pingora's view of the backend, never changed.
#[derive(Clone, Copy, Debug)]
pub struct Index(pub usize);

/// What is in flight at a backend, at one moment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Load {
    /// Tries that were sent and have not ended.
    pub requests: usize,
    /// Uncached prompt tokens sent whose first token has not come back.
    pub pending_tokens: usize,
}

impl Backend {
    /// The socket address it resolved to last; none before the first resolution of a name.
    #[must_use]
    pub fn resolved(&self) -> Option<SocketAddr> {
        self.resolved.load().as_deref().copied()
    }

    /// Whether it has been resolved: the same as asking for the address, and cheaper.
    #[must_use]
    pub fn is_resolved(&self) -> bool {
        self.is_resolved.load(Ordering::Acquire)
    }

    /// Records the socket address that the configured name stands for now.
    pub fn set_resolved(&self, address: SocketAddr) {
        let before = self.resolved();
        if before != Some(address) {
            self.resolved.store(Some(Arc::new(address)));
            self.is_resolved.store(true, Ordering::Release);
            self.returns.fetch_add(usize::from(before.is_some()), Ordering::Relaxed);
        }
    }

    /// Whether the last health checks found it well. A backend starts healthy.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        !self.is(Absence::Unhealthy)
    }

    /// Records the verdict of the health checks.
    pub fn set_healthy(&self, healthy: bool) {
        self.set(Absence::Unhealthy, !healthy);
    }

    /// Whether it is kept from requests for this cause.
    #[must_use]
    pub fn is(&self, absence: Absence) -> bool {
        self.absent[absence as usize].load(Ordering::Relaxed)
    }

    /// Records whether it is kept from requests for this cause.
    pub fn set(&self, absence: Absence, absent: bool) {
        let was_absent = self.absent[absence as usize].swap(absent, Ordering::Relaxed);
        if absence == Absence::Unhealthy && was_absent && !absent {
            self.returns.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often it came back, healthy again or at another address: what was known of its engine may be so no longer.
    #[must_use]
    pub fn returns(&self) -> usize {
        self.returns.load(Ordering::Relaxed)
    }

    /// The first cause that keeps it from requests; `None` = it takes them.
    #[must_use]
    pub fn absence(&self) -> Option<Absence> {
        Absence::ALL.into_iter().find(|&absence| self.is(absence))
    }

    /// What is in flight at this backend at `now`.
    #[must_use]
    pub fn load(&self, now: Instant) -> Load {
        if self.predictions.load(Ordering::Relaxed) > 0 {
            self.release_predicted(now);
        }
        Load {
            requests: self.requests.load(Ordering::Relaxed),
            pending_tokens: self.pending_tokens.load(Ordering::Relaxed),
        }
    }

    /// Tokens of prompts that it computes in a second, as its streams have shown; `None` before any has.
    #[must_use]
    pub fn prefill_rate(&self) -> Option<f64> {
        Some(f64::from_bits(self.prefill_rate.load(Ordering::Relaxed))).filter(|rate| *rate > 0.0)
    }

    /// Books one try at this backend until the lease is dropped: `uncached_tokens` of its prompt are to be computed there.
    ///
    /// A `stream` shows its first token. Any other answer does not, so there the tokens leave the books at the time that the
    /// backend's streams so far predict, if that comes before the answer.
    #[must_use]
    pub fn lease(self: &Arc<Self>, uncached_tokens: usize, stream: bool, now: Instant) -> Lease {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let ahead = self.pending_tokens.fetch_add(uncached_tokens, Ordering::Relaxed);
        let pending = Pending(Arc::new(AtomicUsize::new(uncached_tokens)));
        let waited_for = ahead + uncached_tokens;
        if !stream
            && uncached_tokens > 0
            && let Some(rate) = self.prefill_rate()
        {
            let at = now + Duration::from_secs_f64(tokens(waited_for) / rate);
            self.predictions.fetch_add(1, Ordering::Relaxed);
            self.predicted.lock().push(Predicted { at, pending: pending.clone() });
        }
        Lease { backend: Arc::clone(self), pending, waited_for: stream.then_some(waited_for), sent: now }
    }

    fn release(&self, pending: &Pending) {
        self.pending_tokens.fetch_sub(pending.0.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Takes out what should have been computed by `now`, and what has been taken out otherwise.
    fn release_predicted(&self, now: Instant) {
        let mut predicted = self.predicted.lock();
        let before = predicted.len();
        predicted.retain(|one| {
            if one.at <= now {
                self.release(&one.pending);
            }
            one.pending.0.load(Ordering::Relaxed) > 0
        });
        self.predictions.fetch_sub(before - predicted.len(), Ordering::Relaxed);
    }

    fn learn_rate(&self, tokens_waited_for: usize, waited: Duration) {
        if tokens_waited_for < RATE_TOKENS_MIN || waited.is_zero() {
            return;
        }
        let seen = tokens(tokens_waited_for) / waited.as_secs_f64();
        let rate = self.prefill_rate().map_or(seen, |rate| rate + RATE_SHARE * (seen - rate));
        // Of two streams that teach at once one is forgotten, which does no harm.
        self.prefill_rate.store(rate.to_bits(), Ordering::Relaxed);
    }
}

/// Numbers of tokens are far below 2^32.
fn tokens(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Tokens of one try that are in the books still; whoever takes them out first leaves 0.
#[derive(Clone, Debug)]
struct Pending(Arc<AtomicUsize>);

/// When a first token that nobody will see is predicted. As many as there are such requests in flight.
#[derive(Debug)]
struct Predicted {
    at: Instant,
    pending: Pending,
}

/// One try in the books of a backend; dropping it, for whatever reason, takes it out again.
#[derive(Debug)]
pub struct Lease {
    backend: Arc<Backend>,
    pending: Pending,
    /// Tokens that have to be computed for the first one of this stream.
    waited_for: Option<usize>,
    sent: Instant,
}

impl Lease {
    /// The backend that this try went to.
    #[must_use]
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// The first token of a stream is back: the prompt is no longer pending, and it is known how long it took. Further calls
    /// change nothing.
    pub fn first_token(&mut self, now: Instant) {
        self.answered();
        if let Some(waited_for) = self.waited_for.take() {
            self.backend.learn_rate(waited_for, now.duration_since(self.sent));
        }
    }

    /// The prompt is no longer pending, and nothing shows how long it took: an answer in one piece, or a refusal.
    pub fn answered(&self) {
        self.backend.release(&self.pending);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.backend.release(&self.pending);
        self.backend.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The backends of one cluster, in configuration order.
#[derive(Debug)]
pub struct Fleet {
    /// The cluster's name.
    pub cluster: String,
    backends: Vec<Arc<Backend>>,
}

impl Fleet {
    /// A fleet of `(id, address, weight)`, each healthy until a check says otherwise.
    #[must_use]
    pub fn new(cluster: &str, backends: impl IntoIterator<Item = (String, String, usize)>) -> Arc<Self> {
        let backends = backends.into_iter().enumerate().map(|(index, (id, address, weight))| {
            let parsed = address.parse::<SocketAddr>().ok();
            let is_resolved = AtomicBool::new(parsed.is_some());
            let resolved = ArcSwapOption::from_pointee(parsed);
            Arc::new(Backend {
                id,
                address,
                weight,
                index,
                resolved,
                is_resolved,
                absent: Default::default(),
                returns: AtomicUsize::new(0),
                requests: AtomicUsize::new(0),
                pending_tokens: AtomicUsize::new(0),
                prefill_rate: AtomicU64::new(0),
                predictions: AtomicUsize::new(0),
                predicted: Mutex::new(Vec::new()),
            })
        });
        Arc::new(Self { cluster: cluster.to_owned(), backends: backends.collect() })
    }

    /// The backends in configuration order.
    #[must_use]
    pub fn backends(&self) -> &[Arc<Backend>] {
        &self.backends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend() -> Arc<Backend> {
        Arc::clone(&Fleet::new("c", [("a".to_owned(), "127.0.0.1:1".to_owned(), 1)]).backends()[0])
    }

    fn load(requests: usize, pending_tokens: usize) -> Load {
        Load { requests, pending_tokens }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_tokens_of_a_stream_are_pending_until_the_first_one_is_back() {
        let (backend, now) = (backend(), Instant::now());
        let mut lease = backend.lease(1000, true, now);
        assert_eq!(backend.load(now + 100 * SECOND), load(1, 1000));
        lease.first_token(now + SECOND);
        lease.first_token(now + SECOND);
        assert_eq!(backend.load(now), load(1, 0));
        drop(lease);
        drop(backend.lease(7, true, now));
        assert_eq!(backend.load(now), Load::default());
    }

    #[test]
    fn what_nobody_sees_leaves_the_books_when_streams_predict_it() {
        let (backend, now) = (backend(), Instant::now());
        let silent = backend.lease(500, false, now);
        assert_eq!(backend.load(now + 100 * SECOND), load(1, 500), "nothing is known yet");
        drop(silent);
        backend.lease(1000, true, now).first_token(now + SECOND);
        assert_eq!(backend.prefill_rate(), Some(1000.0));
        let first = backend.lease(500, false, now);
        let second = backend.lease(1500, false, now);
        assert_eq!(backend.load(now), load(2, 2000));
        assert_eq!(backend.load(now + SECOND / 2), load(2, 1500));
        assert_eq!(backend.load(now + SECOND * 2 - Duration::from_millis(1)), load(2, 1500));
        second.answered();
        assert_eq!(backend.load(now), load(2, 0), "its header came first");
        drop((first, second));
        assert_eq!(backend.load(now + 9 * SECOND), Load::default());
        assert_eq!(backend.predicted.lock().len(), 0);
    }

    #[test]
    fn short_prompts_teach_nothing_and_long_ones_a_tenth() {
        let (backend, now) = (backend(), Instant::now());
        backend.lease(255, true, now).first_token(now + SECOND);
        assert_eq!(backend.prefill_rate(), None);
        backend.lease(1000, true, now).first_token(now + SECOND);
        backend.lease(2000, true, now).first_token(now + SECOND);
        assert_eq!(backend.prefill_rate(), Some(1100.0));
        backend.lease(9000, true, now).answered();
        backend.lease(9000, false, now).first_token(now + SECOND);
        assert_eq!(backend.prefill_rate(), Some(1100.0), "an answer in one piece teaches nothing");
    }

    #[test]
    fn what_keeps_a_backend_from_requests_is_told() {
        let backend = backend();
        assert_eq!(backend.absence(), None);
        for absence in Absence::ALL {
            backend.set(absence, true);
            assert_eq!(backend.absence(), Some(absence));
            backend.set(absence, false);
        }
        backend.set_healthy(false);
        assert!(!backend.is_healthy());
    }

    #[test]
    fn a_backend_comes_back_when_it_is_healthy_again_or_elsewhere() {
        let backend = backend();
        backend.set_healthy(true);
        backend.set(Absence::Draining, true);
        backend.set(Absence::Draining, false);
        backend.set_healthy(false);
        backend.set_resolved("127.0.0.1:1".parse().unwrap());
        assert_eq!(backend.returns(), 0);
        backend.set_healthy(true);
        assert_eq!(backend.returns(), 1);
        backend.set_resolved("127.0.0.2:1".parse().unwrap());
        assert_eq!(backend.returns(), 2);
    }

    #[test]
    fn a_name_is_resolved_from_its_first_address_on() {
        let fleet = Fleet::new("c", [("a".to_owned(), "name:1".to_owned(), 1)]);
        let named = &fleet.backends()[0];
        assert_eq!((named.is_resolved(), named.resolved()), (false, None));
        named.set_resolved("127.0.0.1:1".parse().unwrap());
        assert!(named.is_resolved() && named.resolved().is_some());
        assert!(backend().is_resolved(), "an address needs no resolving");
    }
}
