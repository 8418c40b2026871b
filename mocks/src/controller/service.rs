//! Which path answers what. Called by the server for every request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::Value;

use super::ControllerOptions;
use crate::chunks::{Chunks, Credit, Instance};
use crate::server::{Answer, Request, Service, Shared, detail, quoted};
use crate::validation::{Fields, Kind};

/// Where a preferred instance is said to hold everything.
const LOCATION: &str = "LocalCPUBackend";

const TOKENS: (&str, Kind) = ("tokens", Kind::Tokens);
const INSTANCE: (&str, Kind) = ("instance_id", Kind::Text);
const PLACE: (&str, Kind) = ("location", Kind::Text);
const METHOD: (&str, Kind) = ("method", Kind::Text);

/// What the real controller says when a client asks for an address that nobody has.
const NOBODY_AT: &str = "1 validation error for QueryInstResponse\nres\n  Input should be a valid string [type=string_type, input_value=None, input_type=NoneType]\n    For further information visit https://errors.pydantic.dev/2.14/v/string_type";

/// The controller behind the server.
pub(super) struct Core {
    options: ControllerOptions,
    shared: Arc<Shared>,
    preferred: Mutex<Option<String>>,
    pub(super) chunks: Chunks,
    lookups_answered: AtomicU64,
}

/// An answer that begins with an id of its own: the kind of event and a UUID.
fn event(kind: &str, fields: &str) -> Answer {
    let bits = rand::random::<u128>();
    let bits = bits & !(0xf << 76 | 0x3 << 62) | (0x4 << 76 | 0x2 << 62);
    let part = |shift: u32, size: u32| (bits >> shift) & ((1 << size) - 1);
    let [first, second, third] = [part(96, 32), part(80, 16), part(64, 16)];
    let [fourth, last] = [part(48, 16), part(0, 48)];
    let uuid = format!("{first:08x}-{second:04x}-{third:04x}-{fourth:04x}-{last:012x}");
    Answer::json(200, format!(r#"{{"event_id":"{kind}{uuid}",{fields}}}"#))
}

fn num_tokens(kind: &str, tokens: usize) -> Answer {
    event(kind, &format!(r#""num_tokens":{tokens}"#))
}

fn workers_disagree(what: &str) -> Answer {
    detail(500, &format!("The number of tokens {what} should be the same across all workers."))
}

/// A worker as JSON, without its closing brace.
fn worker(index: usize, instance: &Instance) -> String {
    let seconds = |duration: Duration| format!("{:?}", duration.as_secs_f64());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!(
        r#"{{"instance_id":{},"worker_id":0,"ip":"127.0.0.1","port":{},"peer_init_url":null,"registration_time":{},"last_heartbeat_time":{}"#,
        quoted(&instance.id),
        18_601 + index,
        seconds(instance.registered),
        seconds(now),
    )
}

impl Core {
    pub(super) fn new(options: ControllerOptions, shared: Arc<Shared>, chunks: Chunks) -> Self {
        let preferred = Mutex::new(options.prefer.clone());
        Self { options, shared, preferred, chunks, lookups_answered: AtomicU64::new(0) }
    }

    pub(super) fn prefer(&self, instance: Option<String>) {
        *self.preferred.lock() = instance;
    }

    fn route(&self, request: &Request) -> Result<Answer, Answer> {
        let (method, path) = (request.head.method(), request.head.path());
        let allowed = self.allowed(path).ok_or_else(|| detail(404, "Not Found"))?;
        let probe = self.options.health_by_get && (method, path) == ("GET", "/health");
        if method != allowed && !probe {
            return Err(detail(405, "Method Not Allowed").with("allow", allowed));
        }
        let read = |required: &[(&str, Kind)]| Fields::read(request, required);
        match path {
            "/lookup" => {
                let fields = read(&[TOKENS])?;
                self.lookups_answered.fetch_add(1, Ordering::Relaxed);
                Ok(self.look_up(&fields))
            }
            "/pin" => self.control(&read(&[TOKENS, INSTANCE, PLACE])?, "Pin", "pinned"),
            "/compress" => self.control(&read(&[INSTANCE, METHOD, PLACE, TOKENS])?, "Compress", "compressed"),
            "/decompress" => {
                self.control(&read(&[INSTANCE, METHOD, PLACE, TOKENS])?, "Decompress", "decompressed")
            }
            "/clear" => self.clear(&read(&[INSTANCE, PLACE])?),
            "/evict" => Ok(self.evict(&read(&[TOKENS, INSTANCE])?)),
            "/move" => {
                let fields = read(&[("old_position", Kind::Pair), ("new_position", Kind::Pair)])?;
                let (from, to) = (fields.first("old_position"), fields.first("new_position"));
                Err(detail(
                    500,
                    &format!(
                        "Src worker 0 not registered for instance {from} or dst worker 0 not registered for \
                         instance {to} or P2P is not enabled."
                    ),
                ))
            }
            "/health" if method == "GET" => Ok(Answer::json(200, r#"{"status":"healthy"}"#)),
            "/health" => {
                let known = self.chunks.knows(read(&[INSTANCE])?.text("instance_id"));
                Ok(event("health", &format!(r#""error_codes":{{{}}}"#, if known { r#""0":0"# } else { "" })))
            }
            "/check_finish" => Err(detail(500, "")),
            "/query_instance" => self.query_instance(&read(&[("ip", Kind::Text)])?),
            "/query_worker_info" => Ok(self.query_worker_info(&read(&[INSTANCE])?)),
            "/controller/workers" => self.workers(request),
            "/controller/key-stats" => Ok(self.key_stats()),
            "/metrics" => Ok(Answer::text(200, "text/plain; charset=utf-8", self.metrics())),
            "/stats" => Ok(self.stats()),
            _ => self.own(path, request),
        }
    }

    /// What only the mock has: `/admit`, `/prefer` and `/reset`, which makes it as it was when it started.
    fn own(&self, path: &str, request: &Request) -> Result<Answer, Answer> {
        match path {
            "/admit" => {
                let fields = Fields::read(request, &[TOKENS, INSTANCE, PLACE])?;
                let (instance, location) = (fields.text("instance_id"), fields.text("location"));
                self.chunks.admit_any(instance, location, &fields.tokens("tokens"));
            }
            "/prefer" => {
                let fields = Fields::read(request, &[INSTANCE])?;
                self.prefer(Some(fields.text("instance_id").to_owned()).filter(|id| !id.is_empty()));
            }
            _ => {
                self.shared.books.forget();
                self.chunks.forget();
                self.lookups_answered.store(0, Ordering::Relaxed);
                self.prefer(self.options.prefer.clone());
            }
        }
        Ok(Answer::json(200, "{}"))
    }

    /// The method of a path. `/admit`, `/prefer`, `/stats` and `/reset` are the mock's own.
    fn allowed(&self, path: &str) -> Option<&'static str> {
        match path {
            "/evict" if !self.options.evict => None,
            "/lookup" | "/pin" | "/compress" | "/decompress" | "/clear" | "/evict" | "/move" | "/health"
            | "/check_finish" | "/query_instance" | "/query_worker_info" | "/admit" | "/prefer"
            | "/reset" => Some("POST"),
            "/controller/workers" | "/controller/key-stats" | "/metrics" | "/stats" => Some("GET"),
            _ => None,
        }
    }

    fn stats(&self) -> Answer {
        let stats = self.shared.books.stats();
        let lookup = stats.path("/lookup");
        let answered = self.lookups_answered.load(Ordering::Relaxed).min(lookup.received);
        let calls = |path| Value::from(stats.path(path).received);
        let named = [
            ("lookup_calls", calls("/lookup")),
            ("lookup_success", answered.into()),
            ("lookup_failure", (lookup.received - answered).saturating_sub(lookup.in_flight).into()),
            ("pin_calls", calls("/pin")),
            ("compress_calls", calls("/compress")),
            ("evict_calls", calls("/evict")),
            ("clear_calls", calls("/clear")),
            ("preferred_endpoint", self.preferred().into()),
        ];
        stats.page(named.map(|(name, value)| (name.to_owned(), value)).into_iter().collect())
    }

    fn preferred(&self) -> Option<String> {
        self.preferred.lock().clone()
    }

    fn look_up(&self, fields: &Fields) -> Answer {
        let tokens = fields.tokens("tokens");
        let credits = match self.preferred() {
            Some(instance) => vec![Credit { instance, location: LOCATION.to_owned(), tokens: tokens.len() }],
            None => self.chunks.look_up(&tokens),
        };
        let shown = credits.iter().map(|Credit { instance, location, tokens }| {
            let (instance, location) = (quoted(instance), quoted(location));
            if self.options.object_shape {
                format!(r#"{instance}:{{"0":{location},"1":{tokens}}}"#)
            } else {
                format!("{instance}:[{location},{tokens}]")
            }
        });
        event("Lookup", &format!(r#""layout_info":{{{}}}"#, shown.collect::<Vec<_>>().join(",")))
    }

    /// Pins, compresses or decompresses: all that the instance holds from the start of the prompt.
    fn control(&self, fields: &Fields, kind: &str, done: &str) -> Result<Answer, Answer> {
        let (instance, tokens) = (fields.text("instance_id"), fields.tokens("tokens"));
        if self.preferred().is_some() {
            return Ok(num_tokens(kind, tokens.len()));
        }
        if !self.chunks.knows(instance) {
            return Err(workers_disagree(done));
        }
        let without_effect = kind != "Pin" && fields.text("method") != "cachegen";
        let held = self.chunks.held(instance, fields.text("location"), &tokens);
        Ok(num_tokens(kind, if without_effect { 0 } else { held }))
    }

    fn clear(&self, fields: &Fields) -> Result<Answer, Answer> {
        let instance = fields.text("instance_id");
        if !self.chunks.knows(instance) && self.preferred().is_none() {
            return Err(workers_disagree("cleared"));
        }
        Ok(num_tokens("Clear", self.chunks.clear(instance, fields.text("location"))))
    }

    fn evict(&self, fields: &Fields) -> Answer {
        let tokens = fields.tokens("tokens");
        let evicted = self.chunks.evict(fields.text("instance_id"), &tokens);
        num_tokens("Evict", if self.preferred().is_some() { tokens.len() } else { evicted })
    }

    fn query_instance(&self, fields: &Fields) -> Result<Answer, Answer> {
        let first = self.chunks.instances().into_iter().next().filter(|_| fields.text("ip") == "127.0.0.1");
        let first = first.ok_or_else(|| detail(500, NOBODY_AT))?;
        Ok(event("QueryInst", &format!(r#""res":{}"#, quoted(&first.id))))
    }

    fn query_worker_info(&self, fields: &Fields) -> Answer {
        let asked = fields.text("instance_id");
        let instances = self.chunks.instances();
        let workers =
            instances.iter().enumerate().filter(|(_, instance)| asked == "all" || asked == instance.id);
        let workers: Vec<_> = workers.map(|(index, instance)| worker(index, instance) + "}").collect();
        event("QueryWorkerInfo", &format!(r#""worker_infos":[{}]"#, workers.join(",")))
    }

    fn workers(&self, request: &Request) -> Result<Answer, Answer> {
        let asked = request.head.target().split_once("instance_id=").map(|(_, rest)| rest);
        let asked = asked.map(|rest| rest.split('&').next().unwrap_or_default());
        let instances = self.chunks.instances();
        let workers = instances.iter().enumerate();
        let workers = workers.filter(|(_, instance)| asked.is_none_or(|asked| asked == instance.id));
        let workers: Vec<_> = workers
            .map(|(index, instance)| {
                format!(r#"{},"key_count":{}}}"#, worker(index, instance), instance.keys)
            })
            .collect();
        if let Some(asked) = asked
            && workers.is_empty()
        {
            return Err(detail(404, &format!("No workers found for instance {asked}")));
        }
        Ok(Answer::json(
            200,
            format!(r#"{{"workers":[{}],"total_count":{}}}"#, workers.join(","), workers.len()),
        ))
    }

    fn key_stats(&self) -> Answer {
        let instances = self.chunks.instances();
        let (count, keys) = (instances.len(), instances.iter().map(|instance| instance.keys).sum::<usize>());
        let instances: Vec<_> = instances
            .iter()
            .map(|instance| {
                let id = quoted(&instance.id);
                format!(r#"{{"instance_id":{id},"key_count":{},"worker_count":1}}"#, instance.keys)
            })
            .collect();
        Answer::json(
            200,
            format!(
                r#"{{"total_key_count":{keys},"total_instance_count":{count},"total_worker_count":{count},"instances":[{}]}}"#,
                instances.join(",")
            ),
        )
    }

    /// The gauges of the pool; the real page has those of its sockets as well.
    fn metrics(&self) -> String {
        let instances = self.chunks.instances();
        let keys: usize = instances.iter().map(|instance| instance.keys).sum();
        [
            ("kv_pool_keys_count", "The number of keys in the KV pool", keys),
            ("registered_workers_count", "The total number of registered workers", instances.len()),
        ]
        .map(|(name, help, value)| {
            let name = format!("lmcache:cache_controller_{name}");
            format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name}{{role=\"controller\"}} {value}.0\n")
        })
        .concat()
    }
}

impl Service for Core {
    fn answer<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Answer> {
        Box::pin(async move { self.route(request).unwrap_or_else(|refusal| refusal) })
    }

    fn is_work(&self, method: &str, path: &str) -> bool {
        method == "POST" && !matches!(path, "/admit" | "/prefer" | "/reset")
    }
}
