//! Which path answers what. Called by the server for every request.
//!
//! Pins are bounded by a million keys, as the chunks are; what is pinned beyond is ignored.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::CoordinatorOptions;
use crate::chunks::{CHUNK_TOKENS, Chunks, Placed};
use crate::server::{Answer, Request, Service, Shared, detail, quoted};
use crate::validation::{Fields, Kind};

/// The location whose chunks are in an instance's own memory; all others are taken for its disk.
const MEMORY: &str = "LocalCPUBackend";
const PINS_MAX: usize = 1_000_000;

const TOKENS: (&str, Kind) = ("token_ids", Kind::Tokens);
const MODEL: (&str, Kind) = ("model_name", Kind::Text);
const WORLD: (&str, Kind) = ("world_size", Kind::Number);
const SALT: (&str, Kind) = ("cache_salt", Kind::Text);
const INSTANCE: (&str, Kind) = ("instance_id", Kind::Text);

/// The coordinator behind the server.
pub(super) struct Core {
    options: CoordinatorOptions,
    shared: Arc<Shared>,
    preferred: Mutex<Option<String>>,
    /// How often each key is pinned.
    pins: Mutex<BTreeMap<String, u64>>,
    pub(super) chunks: Chunks,
}

/// A chunk of a prompt on one of the ranks that share the model.
struct Key {
    /// As the real one writes it.
    json: String,
    placed: Placed,
}

/// The keys of the tokens in a body: each full chunk on each rank, in this order.
fn keys(fields: &Fields, chunks: &Chunks) -> (usize, Vec<Key>) {
    let placed = chunks.placements(&fields.tokens("token_ids"));
    let (model, salt) = (quoted(fields.text("model_name")), quoted(fields.text("cache_salt")));
    let ranks = fields.number("world_size").unwrap_or(1).clamp(1, 255);
    let count = placed.len();
    let of_ranks = placed.into_iter().flat_map(|placed| (0..ranks).map(move |rank| (placed.clone(), rank)));
    let keys = of_ranks.map(|(placed, rank)| {
        let hash = hex_hash(placed.key);
        let rank = ranks << 24 | rank << 16 | ranks << 8 | rank;
        Key {
            json: format!(
                r#"{{"chunk_hash_hex":"{hash}","model_name":{model},"kv_rank":{rank},"object_group_id":0,"cache_salt":{salt}}}"#
            ),
            placed,
        }
    });
    (count, keys.collect())
}

/// A key as a hash as long as the real ones.
fn hex_hash(key: u64) -> String {
    Sha256::digest(key.to_le_bytes()).iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn placement(instance: &str, location: &str) -> String {
    let (tier, backend) = if location == MEMORY { ("l1", "dram") } else { ("l2", "fs") };
    let instance = quoted(instance);
    format!(
        r#"{{"instance_id":{instance},"incarnation":1,"tier":"{tier}","backend":"{backend}","size_bytes":1000,"shared":false}}"#
    )
}

impl Core {
    pub(super) fn new(options: CoordinatorOptions, shared: Arc<Shared>, chunks: Chunks) -> Self {
        let preferred = Mutex::new(options.prefer.clone());
        Self { options, shared, preferred, pins: Mutex::default(), chunks }
    }

    pub(super) fn prefer(&self, instance: Option<String>) {
        *self.preferred.lock() = instance;
    }

    fn route(&self, request: &Request) -> Result<Answer, Answer> {
        let (method, path) = (request.head.method(), request.head.path());
        let allowed = allowed(path).ok_or_else(|| detail(404, "Not Found"))?;
        if !allowed.contains(&method) {
            return Err(detail(405, "Method Not Allowed").with("allow", allowed.join(", ")));
        }
        match (method, path) {
            (_, "/healthz") => Ok(Answer::json(200, r#"{"status":"healthy"}"#)),
            (_, "/directory/lookup") => self.look_up(request),
            (_, "/directory/stats") => Ok(self.directory_stats()),
            ("GET", "/cache/pins") => Ok(self.list_pins()),
            (_, "/cache/pins") => self.pin(request, method == "POST"),
            (_, "/cache/delete") => self.delete(request),
            (_, "/instances") => Ok(self.instances()),
            _ => self.own(path, request),
        }
    }

    fn look_up(&self, request: &Request) -> Result<Answer, Answer> {
        let fields = Fields::read_with(request, &[], &[TOKENS, MODEL, WORLD, SALT])?;
        let tokens = fields.tokens("token_ids");
        if tokens.is_empty() {
            return Err(fields.refuse("supply exactly one of 'keys' or 'token_ids'"));
        }
        if fields.text("model_name").is_empty() {
            return Err(fields.refuse("'model_name' is required with 'token_ids'"));
        }
        let (count, keys) = keys(&fields, &self.chunks);
        let preferred = self.preferred.lock().clone();
        let results: Vec<String> = keys
            .into_iter()
            .map(|Key { json, placed }| {
                let holders = match &preferred {
                    Some(instance) => vec![(instance.clone(), MEMORY.to_owned())],
                    None => placed.holders,
                };
                let own =
                    if holders.is_empty() { None } else { tokens.get(placed.end - CHUNK_TOKENS..placed.end) };
                let own = Value::from(own.unwrap_or_default());
                let placements: Vec<_> =
                    holders.iter().map(|(instance, location)| placement(instance, location)).collect();
                let placements = placements.join(",");
                format!(r#"{{"key":{json},"placements":[{placements}],"token_ids":{own},"access_count":0}}"#)
            })
            .collect();
        Ok(Answer::json(200, format!(r#"{{"chunks":{count},"results":[{}]}}"#, results.join(","))))
    }

    /// Pins or unpins the full chunks of a prompt, known or not.
    fn pin(&self, request: &Request, pin: bool) -> Result<Answer, Answer> {
        let fields = Fields::read_with(request, &[MODEL, WORLD], &[TOKENS, SALT])?;
        let (requested, keys) = keys(&fields, &self.chunks);
        let mut pins = self.pins.lock();
        let mut affected = 0;
        for Key { json, .. } in keys {
            if !pin && !pins.contains_key(&json) || pins.len() >= PINS_MAX && !pins.contains_key(&json) {
                continue;
            }
            affected += 1;
            let count = pins.entry(json).or_default();
            *count = if pin { *count + 1 } else { *count - 1 };
        }
        pins.retain(|_, count| *count > 0);
        let status = if pin { "pinned" } else { "unpinned" };
        Ok(Answer::json(
            200,
            format!(r#"{{"requested":{requested},"affected":{affected},"status":"{status}"}}"#),
        ))
    }

    fn list_pins(&self) -> Answer {
        let pins = self.pins.lock();
        let shown = pins.iter().map(|(key, count)| format!(r#"{{"key":{key},"pin_count":{count}}}"#));
        let shown = shown.collect::<Vec<_>>().join(",");
        Answer::json(200, format!(r#"{{"total":{},"pins":[{shown}]}}"#, pins.len()))
    }

    /// Drops the chunks of a prompt from one instance.
    fn delete(&self, request: &Request) -> Result<Answer, Answer> {
        let fields = Fields::read_with(request, &[INSTANCE, MODEL, WORLD], &[TOKENS, SALT])?;
        let instance = fields.text("instance_id");
        if !self.chunks.knows(instance) {
            return Err(detail(404, &format!("no MP server registered with instance_id='{instance}'")));
        }
        let tokens = fields.tokens("token_ids");
        let requested = self.chunks.placements(&tokens).len();
        let affected = self.chunks.evict(instance, &tokens).div_ceil(CHUNK_TOKENS);
        let instance = quoted(instance);
        Ok(Answer::json(
            200,
            format!(
                r#"{{"instance_id":{instance},"requested":{requested},"affected":{affected},"skipped":0,"status":"deleted"}}"#
            ),
        ))
    }

    fn instances(&self) -> Answer {
        let instances = self.chunks.instances();
        let instances = instances.iter().enumerate().map(|(index, instance)| {
            let (id, port) = (quoted(&instance.id), 19_401 + index);
            let registered = instance.registered.as_secs_f64();
            format!(
                r#"{{"instance_id":{id},"ip":"127.0.0.1","http_port":{port},"registration_time":{registered:?},"metadata":{{}},"p2p_advertised_url":"","mq_port":0}}"#
            )
        });
        Answer::json(200, format!(r#"{{"instances":[{}]}}"#, instances.collect::<Vec<_>>().join(",")))
    }

    /// Counts every chunk of an instance as its memory, as it is where LMCache has no disk.
    fn directory_stats(&self) -> Answer {
        let instances = self.chunks.instances();
        let by_instance: serde_json::Map<_, _> = instances
            .iter()
            .filter(|instance| instance.keys > 0)
            .map(|instance| (instance.id.clone(), instance.keys.into()))
            .collect();
        let (keys, placements) = (self.chunks.count(), instances.iter().map(|own| own.keys).sum::<usize>());
        let shown = json!({
            "num_keys": keys,
            "num_placements": placements,
            "l1_keys_by_instance": by_instance,
            "blend": {"num_contents": 0, "num_chunks": 0, "num_claims": 0, "num_namespaces": 0, "table_size": 1024},
            "l1_count": placements,
            "l1_size_bytes": placements * 1000,
            "l2_count": 0,
            "l2_size_bytes": 0,
        });
        Answer::json(200, shown.to_string())
    }

    /// What only the mock has: `/stats`, `/admit`, `/prefer`, and `/reset`, which makes it as it was when it started.
    fn own(&self, path: &str, request: &Request) -> Result<Answer, Answer> {
        match path {
            "/stats" => {
                let stats = self.shared.books.stats();
                let calls = |path| Value::from(stats.path(path).received);
                let named = [
                    ("lookup_calls", calls("/directory/lookup")),
                    ("pin_calls", calls("/cache/pins")),
                    ("delete_calls", calls("/cache/delete")),
                    ("preferred_endpoint", self.preferred.lock().clone().into()),
                ];
                return Ok(
                    stats.page(named.map(|(name, value)| (name.to_owned(), value)).into_iter().collect())
                );
            }
            "/admit" => {
                let fields =
                    Fields::read(request, &[("tokens", Kind::Tokens), INSTANCE, ("location", Kind::Text)])?;
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
                self.pins.lock().clear();
                self.prefer(self.options.prefer.clone());
            }
        }
        Ok(Answer::json(200, "{}"))
    }
}

/// The methods of a path; `None` where there is nothing, as at the controller's `/lookup`.
fn allowed(path: &str) -> Option<&'static [&'static str]> {
    Some(match path {
        "/healthz" | "/instances" | "/directory/stats" | "/stats" => &["GET"],
        "/cache/pins" => &["DELETE", "GET", "POST"],
        "/directory/lookup" | "/cache/delete" | "/admit" | "/prefer" | "/reset" => &["POST"],
        _ => return None,
    })
}

impl Service for Core {
    fn answer<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Answer> {
        Box::pin(async move { self.route(request).unwrap_or_else(|refusal| refusal) })
    }

    fn is_work(&self, method: &str, path: &str) -> bool {
        matches!(method, "POST" | "DELETE") && !matches!(path, "/admit" | "/prefer" | "/reset")
    }
}
