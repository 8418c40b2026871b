//! The jobs that requests hand over to the background: a queue with a bound on jobs and one on bytes.
//!
//! Pushed to by `proxy`, once per request; taken from by the one service of the cluster in `background`. What does not
//! fit is refused, and the request knows nothing of it. It wakes the service only when the first job comes, and never
//! waits itself.

use super::budget::Share;
use super::tokens::{PromptKey, Tokens};
use bytes::Bytes;
use http::HeaderValue;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What is to be done about one request's prompt.
pub struct Job {
    /// The prompt's identity.
    pub key: PromptKey,
    /// The model that the request is for.
    pub model: Arc<str>,
    /// What keeps this prompt's blocks apart from those of others.
    pub cache_salt: Option<Arc<str>>,
    /// What is known of the prompt.
    pub prompt: Prompt,
    /// What the request's own lookup found; empty = look up.
    pub found: Vec<Found>,
    /// Whether the prompt is hot.
    pub hot: bool,
    /// When the request handed it over; its time runs from here on.
    pub handed_over: Instant,
    /// Cancelled when the client aborts the request; a normal end leaves it as it is.
    pub aborted: CancellationToken,
}

/// A prompt, before or after it was tokenized.
pub enum Prompt {
    /// To be tokenized.
    Text(Text),
    /// Its tokens.
    Tokens(Tokens),
}

/// What is to be sent to the tokenizer.
pub struct Text {
    /// The body, as it is sent.
    pub body: Bytes,
    /// The client's own authorization, for engines whose key we do not have.
    pub authorization: Option<HeaderValue>,
    /// The request's share of the body budget, given back when the request and the job are done with the body.
    pub share: Option<Arc<Share>>,
}

/// What an instance is believed to hold of a prompt.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Found {
    /// LMCache's name of the engine.
    pub instance: String,
    /// Where in the instance.
    pub location: String,
    /// How many of the prompt's tokens.
    pub tokens: usize,
}

/// Why a job was not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// Too many jobs wait.
    Jobs,
    /// The waiting and running jobs hold too many bytes.
    Bytes,
    /// The background takes no more jobs.
    Closed,
}

/// The jobs of one cluster that wait, and the books about those that run.
pub struct Inbox {
    jobs_max: usize,
    bytes_max: usize,
    queue: Mutex<Queue>,
    arrived: Notify,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Job>,
    running: usize,
    /// Of waiting and running jobs.
    bytes: usize,
    closed: bool,
}

/// A job that was taken; in the books of its inbox until it is dropped.
pub struct Running {
    /// The job.
    pub job: Job,
    bytes: usize,
    inbox: Arc<Inbox>,
}

impl Refusal {
    /// As a label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Jobs => "jobs",
            Self::Bytes => "bytes",
            Self::Closed => "closed",
        }
    }
}

impl Prompt {
    /// What it occupies: of memory, or of the body budget where it keeps more of that from others.
    fn bytes(&self) -> usize {
        match self {
            Self::Text(Text { body, share, .. }) => {
                body.len().max(share.as_ref().map_or(0, |share| share.bytes()))
            }
            Self::Tokens(tokens) => size_of_val::<[u32]>(tokens),
        }
    }
}

impl Inbox {
    /// An inbox for `jobs_max` jobs that wait, and for `bytes_max` bytes of jobs that wait or run.
    #[must_use]
    pub fn new(jobs_max: usize, bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { jobs_max, bytes_max, queue: Mutex::default(), arrived: Notify::new() })
    }

    /// Hands a job over to the background.
    ///
    /// # Errors
    /// When it does not fit; then it is gone.
    pub fn push(&self, job: Job) -> Result<(), Refusal> {
        let is_first = {
            let mut queue = self.queue.lock();
            let bytes = queue.bytes.saturating_add(job.prompt.bytes());
            if queue.closed {
                return Err(Refusal::Closed);
            }
            if queue.waiting.len() >= self.jobs_max {
                return Err(Refusal::Jobs);
            }
            if bytes > self.bytes_max {
                return Err(Refusal::Bytes);
            }
            queue.bytes = bytes;
            queue.waiting.push_back(job);
            queue.waiting.len() == 1
        };
        if is_first {
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Waits until a job waits. For one caller.
    pub async fn arrived(&self) {
        while self.waiting() == 0 {
            self.arrived.notified().await;
        }
    }

    /// Takes the `count` jobs that have waited longest, or as many as there are.
    #[must_use]
    pub fn take(self: &Arc<Self>, count: usize) -> Vec<Running> {
        let mut queue = self.queue.lock();
        let count = count.min(queue.waiting.len());
        queue.running += count;
        let jobs = queue.waiting.drain(..count);
        jobs.map(|job| Running { bytes: job.prompt.bytes(), job, inbox: Arc::clone(self) }).collect()
    }

    /// Takes no more jobs, and gives up those that wait; how many they were.
    pub fn close(&self) -> usize {
        let given_up = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            let bytes: usize = queue.waiting.iter().map(|job| job.prompt.bytes()).sum();
            queue.bytes -= bytes;
            std::mem::take(&mut queue.waiting)
        };
        given_up.len()
    }

    /// The jobs that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.lock().waiting.len()
    }

    /// The jobs that run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.queue.lock().running
    }

    /// The bytes that waiting and running jobs hold of prompts.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.queue.lock().bytes
    }
}

impl Running {
    /// The tokens are known: lets go of the body, and of what it took of the budgets.
    pub fn tokenized(&mut self, tokens: Tokens) {
        self.job.prompt = Prompt::Tokens(tokens);
        let bytes = self.bytes.min(self.job.prompt.bytes());
        self.inbox.queue.lock().bytes -= self.bytes - bytes;
        self.bytes = bytes;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut queue = self.inbox.queue.lock();
        queue.running -= 1;
        queue.bytes -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::budget::Budget;
    use futures::poll;

    fn job(key: u128, bytes: usize) -> Job {
        Job {
            key: PromptKey(key),
            model: "tiny".into(),
            cache_salt: None,
            prompt: Prompt::Text(Text { body: vec![0; bytes].into(), authorization: None, share: None }),
            found: Vec::new(),
            hot: false,
            handed_over: Instant::now(),
            aborted: CancellationToken::new(),
        }
    }

    fn keys(taken: &[Running]) -> Vec<u128> {
        taken.iter().map(|running| running.job.key.0).collect()
    }

    #[test]
    fn jobs_leave_in_the_order_in_which_they_came() {
        let inbox = Inbox::new(10, 100);
        for key in 0..5 {
            assert_eq!(inbox.push(job(key, 1)), Ok(()));
        }
        assert_eq!(keys(&inbox.take(2)), [0, 1]);
        assert_eq!(keys(&inbox.take(9)), [2, 3, 4]);
        assert!(inbox.take(9).is_empty());
    }

    #[test]
    fn only_waiting_jobs_count_against_the_bound_on_jobs() {
        let inbox = Inbox::new(2, 100);
        assert_eq!([0, 1].map(|key| inbox.push(job(key, 1))), [Ok(()); 2]);
        assert_eq!(inbox.push(job(2, 1)), Err(Refusal::Jobs));
        let _running = inbox.take(1);
        assert_eq!([3, 4].map(|key| inbox.push(job(key, 1))), [Ok(()), Err(Refusal::Jobs)]);
        assert_eq!((inbox.waiting(), inbox.running()), (2, 1));
    }

    #[test]
    fn running_jobs_hold_their_bytes_until_they_are_tokenized_or_end() {
        let inbox = Inbox::new(10, 100);
        assert_eq!(inbox.push(job(0, 60)), Ok(()));
        let mut running = inbox.take(1).pop().unwrap();
        assert_eq!(inbox.push(job(1, 41)), Err(Refusal::Bytes));
        running.tokenized(vec![1; 5].into());
        assert_eq!(inbox.bytes(), 20, "five tokens");
        assert_eq!(inbox.push(job(1, 80)), Ok(()));
        drop(running);
        assert_eq!((inbox.bytes(), inbox.running()), (80, 0));
    }

    #[test]
    fn tokens_larger_than_their_text_do_not_break_the_bound() {
        let inbox = Inbox::new(10, 8);
        assert_eq!(inbox.push(job(0, 8)), Ok(()));
        let mut running = inbox.take(1).pop().unwrap();
        running.tokenized(vec![1; 8].into());
        assert_eq!(inbox.bytes(), 8);
        drop(running);
        assert_eq!(inbox.bytes(), 0);
    }

    #[test]
    fn the_share_of_the_budget_goes_back_with_the_body() {
        let (inbox, budget) = (Inbox::new(10, 100), Budget::new(100));
        let mut share = budget.share();
        assert!(share.grow(40));
        let share = Arc::new(share);
        let mut with_share = job(0, 40);
        if let Prompt::Text(text) = &mut with_share.prompt {
            text.share = Some(Arc::clone(&share));
        }
        assert_eq!(inbox.push(with_share), Ok(()));
        drop(share);
        assert_eq!(budget.used(), 40, "the request is done with it, and the job is not");
        let mut running = inbox.take(1).pop().unwrap();
        running.tokenized(vec![1].into());
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_closed_inbox_is_empty_and_refuses() {
        let inbox = Inbox::new(10, 100);
        assert_eq!([0, 1].map(|key| inbox.push(job(key, 7))), [Ok(()); 2]);
        let running = inbox.take(1);
        assert_eq!((inbox.close(), inbox.waiting(), inbox.bytes()), (1, 0, 7));
        assert_eq!(inbox.push(job(2, 1)), Err(Refusal::Closed));
        drop(running);
        assert_eq!(inbox.bytes(), 0);
    }

    #[tokio::test]
    async fn only_the_first_of_the_waiting_jobs_wakes() {
        let inbox = Inbox::new(10, 100);
        let mut arrived = Box::pin(inbox.arrived());
        assert!(poll!(arrived.as_mut()).is_pending());
        assert_eq!(inbox.push(job(0, 1)), Ok(()));
        assert!(poll!(arrived.as_mut()).is_ready());
        assert_eq!(inbox.push(job(1, 1)), Ok(()));
        drop(inbox.take(2));
        let mut notified = Box::pin(inbox.arrived.notified());
        assert!(poll!(notified.as_mut()).is_pending(), "the second job left a wake-up behind");
    }
}
