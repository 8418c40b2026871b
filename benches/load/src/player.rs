//! Plays what is planned against one address, in an open or in a closed loop, and tells its books what became of it.
//!
//! Used by `run` and `routing`. In an open loop every session has a task of its own and every request its time: it is written
//! before it is due and sent on a connection that is free, or on a new one, so that nobody waits for another. In a closed loop
//! each of a few workers takes the next job when its last one is done. A session whose request failed is over. Bounded by the
//! requests that may be under way, by how far requests are written ahead, and by the time that one may take.
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{self, JoinSet};
use tokio::time::{self, Instant};

use crate::alarm::Alarms;
use crate::answer::Answer;
use crate::client::{Connection, check};
use crate::measurement::Failure;
use crate::plan::{Job, Said, Session, Text};
use crate::reply::{self, Usage};
use crate::socket::Address;
use crate::wire::Wire;

/// How long before they are due requests are written.
pub(crate) const LEAD: Duration = Duration::from_millis(500);
/// A connection that was idle for longer is not used again: common servers close theirs after 5 s.
const IDLE_MAX: Duration = Duration::from_secs(4);
/// After a failure, so that a target that refuses everything does not turn a closed loop into a busy one.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(20);

/// What became of one request.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) due: Instant,
    pub(crate) sent: Instant,
    /// None in an answer that is no stream.
    pub(crate) first_event: Option<Instant>,
    pub(crate) end: Instant,
    pub(crate) events: u64,
    pub(crate) usage: Option<Usage>,
    pub(crate) backend: Option<String>,
}

/// Who is told what became of requests, in the order in which it happens.
pub(crate) trait Books {
    /// A request goes out now.
    fn sent(&mut self, due: Instant, now: Instant);
    /// A stream brought so many events, `since` those before them.
    fn gap(&mut self, due: Instant, events: u64, since: Duration, now: Instant);
    fn answered(&mut self, answered: Answered);
    /// The target turned a request away, and may have said after how many seconds to come again.
    fn shed(&mut self, due: Instant, status: u16, retry_after: Option<u64>, now: Instant);
    fn failed(&mut self, due: Instant, failure: &Failure, now: Instant);
}

/// How a player plays.
pub(crate) struct Settings {
    pub(crate) address: Address,
    pub(crate) wire: Wire,
    /// How long one request may take.
    pub(crate) timeout: Duration,
    /// Requests that may be under way at a time.
    pub(crate) under_way_max: usize,
    /// No turn that is due later is sent.
    pub(crate) until: Option<Instant>,
}

/// Plays what it is given; lives within a `LocalSet`.
pub(crate) struct Player<B> {
    settings: Settings,
    places: Arc<Semaphore>,
    crowded: Cell<bool>,
    alarms: Alarms,
    idle: RefCell<Vec<(Connection, Instant)>>,
    pub(crate) books: RefCell<B>,
}

impl<B: Books + 'static> Player<B> {
    pub(crate) fn new(settings: Settings, books: B) -> Rc<Self> {
        let places = Arc::new(Semaphore::new(settings.under_way_max.min(Semaphore::MAX_PERMITS)));
        Rc::new(Self {
            settings,
            places,
            crowded: Cell::new(false),
            alarms: Alarms::default(),
            idle: RefCell::default(),
            books: RefCell::new(books),
        })
    }

    /// Whether requests waited here because as many were under way as may be.
    pub(crate) fn was_crowded(&self) -> bool {
        self.crowded.get()
    }

    /// An open loop: jobs in the order of their times, which count from `opened`.
    pub(crate) async fn play(self: &Rc<Self>, jobs: impl Iterator<Item = (Duration, Job)>, opened: Instant) {
        let mut sessions = JoinSet::new();
        for (number, (at, job)) in (0..).zip(jobs) {
            let due = opened + at;
            time::sleep_until(due.checked_sub(LEAD).unwrap_or(due)).await;
            // Whoever is behind must not keep others from going on.
            task::yield_now().await;
            let place = self.place(due).await;
            while sessions.try_join_next().is_some() {}
            sessions.spawn_local(Rc::clone(self).perform(number, job, Some(due), place));
        }
        while sessions.join_next().await.is_some() {}
    }

    /// A closed loop of so many workers.
    pub(crate) async fn keep_busy(
        self: &Rc<Self>,
        jobs: impl Iterator<Item = Job> + 'static,
        workers: usize,
    ) {
        let jobs = Rc::new(RefCell::new((0..).zip(jobs)));
        let mut all = JoinSet::new();
        for _ in 0..workers {
            let (player, jobs) = (Rc::clone(self), Rc::clone(&jobs));
            all.spawn_local(async move {
                loop {
                    let Some((number, job)) = jobs.borrow_mut().next() else { return };
                    if !Rc::clone(&player).perform(number, job, None, None).await {
                        time::sleep(PAUSE_AFTER_FAILURE).await;
                    }
                }
            });
        }
        while all.join_next().await.is_some() {}
    }

    /// A place among the requests under way.
    async fn place(&self, due: Instant) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Some(place);
        }
        // It is never closed.
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        if Instant::now() > due {
            self.crowded.set(true);
        }
        place
    }

    /// Does one job, whose first request is due at a time or at once; whether all went well.
    async fn perform(
        self: Rc<Self>,
        number: u64,
        job: Job,
        due: Option<Instant>,
        place: Option<OwnedSemaphorePermit>,
    ) -> bool {
        match job {
            Job::Request(bytes) => self.ask(&bytes, due, false, place).await.is_some(),
            Job::Session(session) => self.converse(number, session, due, place).await.is_some(),
        }
    }

    async fn converse(
        &self,
        number: u64,
        session: Session,
        mut due: Option<Instant>,
        mut place: Option<OwnedSemaphorePermit>,
    ) -> Option<()> {
        let mut messages: Vec<_> = session.opening.iter().map(Said::message).collect();
        let mut turns = session.turns.iter().peekable();
        while let Some(turn) = turns.next() {
            messages.push(turn.question.message());
            let tools = session.tools.as_deref();
            let request = self.settings.wire.request(number, tools, &messages, turn.answer_tokens);
            let answer = self.ask(&request, due, turns.peek().is_some(), place.take()).await?;
            let Some(next) = turns.peek() else { break };
            messages.push(next.question.after(Text::Given(answer.into())).message());
            let next_due = Instant::now() + next.pause;
            if self.settings.until.is_some_and(|until| next_due >= until) {
                break;
            }
            due = Some(next_due);
        }
        Some(())
    }

    /// Sends a request when it is due; the text of the answer, if it is wanted, or nothing when there is none.
    async fn ask(
        &self,
        request: &[u8],
        due: Option<Instant>,
        keep: bool,
        place: Option<OwnedSemaphorePermit>,
    ) -> Option<String> {
        if let Some(due) = due {
            self.alarms.wait_until(due).await;
        }
        let due = due.unwrap_or_else(Instant::now);
        let _place = match place {
            Some(place) => Some(place),
            None => self.place(due).await,
        };
        let mut connection = self.connection();
        let sent = Instant::now();
        self.books.borrow_mut().sent(due, sent);
        let result = self.exchange(&mut connection, request, due, sent, keep).await;
        let now = Instant::now();
        if connection.is_usable() {
            self.idle.borrow_mut().push((connection, now));
        }
        match result {
            Ok(text) => text,
            Err(failure) => {
                self.books.borrow_mut().failed(due, &failure, now);
                None
            }
        }
    }

    async fn exchange(
        &self,
        connection: &mut Connection,
        request: &[u8],
        due: Instant,
        sent: Instant,
        keep: bool,
    ) -> Result<Option<String>, Failure> {
        let Settings { wire, timeout, .. } = &self.settings;
        let (mut events, mut first, mut last) = (0, None, sent);
        let seen = |answer: &Answer| {
            if wire.stream && answer.events() > events {
                let now = Instant::now();
                if first.is_none() {
                    first = Some(now);
                    last = now;
                    events += 1;
                }
                if answer.events() > events {
                    self.books.borrow_mut().gap(due, answer.events() - events, now - last, now);
                    (events, last) = (answer.events(), now);
                }
            }
        };
        let answer = connection.exchange(request, wire.answer(keep), *timeout, seen).await?;
        let end = Instant::now();
        if let status @ (429 | 503) = answer.status() {
            self.books.borrow_mut().shed(due, status, answer.retry_after(), end);
            return Ok(None);
        }
        check(&answer, wire.stream)?;
        let text = if keep { reply::text(answer.body(), wire.stream)? } else { String::new() };
        let usage = Usage::find(answer.tail());
        let backend = answer.served_by().map(str::to_owned);
        self.books.borrow_mut().answered(Answered {
            due,
            sent,
            first_event: first,
            end,
            events,
            usage,
            backend,
        });
        Ok(Some(text))
    }

    /// A connection that is free, or a new one.
    fn connection(&self) -> Connection {
        let mut idle = self.idle.borrow_mut();
        while let Some((connection, since)) = idle.pop() {
            if since.elapsed() > IDLE_MAX {
                // Those below it are idle for longer.
                idle.clear();
            } else if connection.is_usable() {
                return connection;
            }
        }
        Connection::to(self.settings.address.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::{pending, ready};

    use http::uri::Authority;
    use serde_json::Value;
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;
    use tokio::task::LocalSet;

    use super::*;
    use crate::answer::SERVED_BY;
    use crate::plan::Turn;
    use crate::target::CHAT_PATH;
    use crate::wire::Endpoint;

    /// What was told, in words.
    #[derive(Default)]
    struct Told {
        answered: Vec<Answered>,
        rest: Vec<String>,
    }

    impl Books for Told {
        fn sent(&mut self, _due: Instant, _now: Instant) {}

        fn gap(&mut self, _due: Instant, events: u64, _since: Duration, _now: Instant) {
            self.rest.push(format!("{events} more"));
        }

        fn answered(&mut self, answered: Answered) {
            self.answered.push(answered);
        }

        fn shed(&mut self, _due: Instant, status: u16, retry_after: Option<u64>, _now: Instant) {
            self.rest.push(format!("{status}, {retry_after:?}"));
        }

        fn failed(&mut self, _due: Instant, failure: &Failure, _now: Instant) {
            self.rest.push(failure.to_string());
        }
    }

    /// Takes one connection after the other; keeps the body of each request, and gives it the next of `answers`.
    async fn serve(
        listener: TcpListener,
        mut answers: impl Iterator<Item = String>,
        seen: &RefCell<Vec<Value>>,
    ) -> Infallible {
        loop {
            let mut stream = BufReader::new(listener.accept().await.unwrap().0);
            let (mut length, mut line) = (0, String::new());
            while stream.read_line(&mut line).await.unwrap() > 0 {
                if let Some(value) = line.strip_prefix("content-length: ") {
                    length = value.trim().parse().unwrap();
                }
                if line == "\r\n" {
                    let mut body = vec![0; length];
                    stream.read_exact(&mut body).await.unwrap();
                    seen.borrow_mut().push(serde_json::from_slice(&body).unwrap());
                    stream.write_all(answers.next().unwrap().as_bytes()).await.unwrap();
                }
                line.clear();
            }
        }
    }

    fn answer(text: &str) -> String {
        let body = format!(
            "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n\
             data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":5,\"completion_tokens\":1}}}}\n\ndata: [DONE]\n\n"
        );
        format!("HTTP/1.1 200 OK\r\nx-served-by: a\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    fn busy(status: u16) -> String {
        format!("HTTP/1.1 {status} Busy\r\nretry-after: 3\r\ncontent-length: 2\r\n\r\n{{}}")
    }

    fn said(text: &str) -> Text {
        Text::Given(text.into())
    }

    fn session(questions: &[&str]) -> Session {
        let turn = |question: &&str| Turn {
            pause: Duration::from_millis(5),
            question: Said::user(said(question)),
            answer_tokens: 1,
        };
        let opening = vec![Said::system(said("be brief"))];
        Session { opening, turns: questions.iter().map(turn).collect(), ..Session::default() }
    }

    /// Plays sessions against a server with these answers; what it was asked, and what the books were told.
    async fn meet(
        sessions: Vec<Session>,
        answers: Vec<String>,
        until: Option<Duration>,
        interrupt: impl Future<Output = ()>,
    ) -> (Vec<Value>, Told) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = Wire {
            authority: Authority::from_static("a:1"),
            path: CHAT_PATH,
            head: String::new(),
            endpoint: Endpoint::Chat,
            model: "m".to_owned(),
            stream: true,
            backend_header: SERVED_BY.into(),
        };
        let opened = Instant::now();
        let settings = Settings {
            address: listener.local_addr().unwrap().into(),
            wire,
            timeout: Duration::from_secs(30),
            under_way_max: 10,
            until: until.map(|until| opened + until),
        };
        let (player, local, seen) =
            (Player::new(settings, Told::default()), LocalSet::new(), RefCell::default());
        let jobs = sessions.into_iter().map(|session| (session.start, Job::Session(session)));
        local
            .run_until(async {
                tokio::select! {
                    () = player.play(jobs, opened) => {}
                    () = interrupt => {}
                    never = serve(listener, answers.into_iter(), &seen) => match never {},
                }
            })
            .await;
        (seen.into_inner(), player.books.take())
    }

    #[tokio::test]
    async fn a_turn_sends_what_the_engine_answered_before() {
        let answers = vec![answer("four"), answer("six")];
        let (seen, told) = meet(vec![session(&["2 + 2?", "3 + 3?"])], answers, None, pending()).await;
        let said = |message: &Value| format!("{}: {}", message["role"].as_str().unwrap(), message["content"]);
        let said: Vec<_> = seen[1]["messages"].as_array().unwrap().iter().map(said).collect();
        let expected =
            ["system: \"be brief\"", "user: \"2 + 2?\"", "assistant: \"four\"", "user: \"3 + 3?\""];
        assert_eq!(said, expected);
        assert_eq!(
            (&seen[0]["stream"], &seen[0]["stream_options"]["include_usage"]),
            (&true.into(), &true.into())
        );
        let [first, second] = told.answered.as_slice() else { panic!("{:?}", told.rest) };
        assert_eq!((first.events, first.usage.as_ref().unwrap().prompt_tokens), (3, 5));
        assert_eq!(first.backend.as_deref(), Some("a"));
        assert!(second.due >= first.end + Duration::from_millis(5) && second.sent >= second.due);
        assert!(first.first_event.is_some_and(|event| event >= first.sent && event <= first.end));
    }

    #[tokio::test]
    async fn a_session_whose_request_failed_or_was_shed_is_over() {
        for (status, expected) in [(500, "status 500"), (503, "503, Some(3)"), (429, "429, Some(3)")] {
            let (seen, told) = meet(vec![session(&["a", "b"])], vec![busy(status)], None, pending()).await;
            assert_eq!((seen.len(), told.answered.len()), (1, 0));
            assert_eq!(told.rest, [expected]);
        }
    }

    #[tokio::test]
    async fn no_turn_is_sent_that_is_due_after_the_end() {
        let (seen, told) =
            meet(vec![session(&["a", "b"])], vec![answer("x")], Some(Duration::ZERO), pending()).await;
        assert_eq!((seen.len(), told.answered.len()), (1, 1));
    }

    #[tokio::test]
    async fn an_interrupt_ends_what_is_under_way() {
        let (_, told) = meet(vec![session(&["a"])], Vec::new(), None, ready(())).await;
        assert!(told.answered.is_empty() && told.rest.is_empty());
    }
}
