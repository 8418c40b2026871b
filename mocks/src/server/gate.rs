//! Gates: places where a test makes answers wait, and learns that they do.
//!
//! A gate stands for every request that reaches its place while it is held. Bounded by the tests that hold gates.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

/// Where in an answer a gate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Headers,
    FirstToken,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    open: bool,
    /// Requests that stand at the gate now.
    waiting: usize,
}

#[derive(Debug)]
struct Post {
    place: Place,
    path: Option<String>,
    state: watch::Sender<State>,
}

/// The gates that are held now.
#[derive(Debug, Clone, Default)]
pub(super) struct Gates {
    posts: Arc<Mutex<Vec<Arc<Post>>>>,
}

impl Gates {
    pub(super) fn hold(&self, place: Place, path: Option<&str>) -> Gate {
        let post = Arc::new(Post {
            place,
            path: path.map(str::to_owned),
            state: watch::Sender::new(State::default()),
        });
        self.posts.lock().push(Arc::clone(&post));
        Gate { post, gates: self.clone() }
    }

    /// Whether a request on `path` would have to wait at `place`.
    pub(super) fn hold_up(&self, place: Place, path: &str, work: bool) -> bool {
        self.posts.lock().iter().any(|post| post.stands_for(place, path, work))
    }

    /// Waits at every gate that stands at `place` for this request.
    pub(super) async fn pass(&self, place: Place, path: &str, work: bool) {
        loop {
            let post = self.posts.lock().iter().find(|post| post.stands_for(place, path, work)).cloned();
            match post {
                Some(post) => post.wait().await,
                None => return,
            }
        }
    }
}

impl Post {
    fn stands_for(&self, place: Place, path: &str, work: bool) -> bool {
        self.place == place && self.path.as_deref().map_or(work, |own| own == path)
    }

    async fn wait(&self) {
        struct Waiting<'a>(&'a Post);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.state.send_modify(|state| state.waiting -= 1);
            }
        }
        let mut watcher = self.state.subscribe();
        self.state.send_modify(|state| state.waiting += 1);
        let _waiting = Waiting(self);
        // The sender is in `self`, so it cannot be gone.
        drop(watcher.wait_for(|state| state.open).await);
    }
}

/// Holds answers until it is released or dropped.
#[derive(Debug)]
#[must_use = "a gate that is dropped holds nothing"]
pub struct Gate {
    post: Arc<Post>,
    gates: Gates,
}

impl Gate {
    /// Waits until at least `count` requests stand at the gate.
    pub async fn waiting(&self, count: usize) {
        // The sender is in the post that `self` keeps, so it cannot be gone.
        drop(self.post.state.subscribe().wait_for(|state| state.waiting >= count).await);
    }

    /// Lets everything that waits go on.
    pub fn release(self) {
        drop(self);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.gates.posts.lock().retain(|post| !Arc::ptr_eq(post, &self.post));
        self.post.state.send_modify(|state| state.open = true);
    }
}
