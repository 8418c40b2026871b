//! `/metrics` as vLLM names it. What a mock does not have (speculation, images, transfers) stands at zero.

use std::fmt::Write as _;

use super::SleepState;

/// The numbers behind the page.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    pub(super) sleep: SleepState,
    pub(super) running: f64,
    pub(super) waiting: f64,
    pub(super) kv_cache_usage: f64,
    pub(super) block_size: usize,
    pub(super) prefix_caching: bool,
    pub(super) num_gpu_blocks: u32,
    pub(super) totals: Totals,
}

/// What has been counted since the start or the last reset.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Totals {
    pub(super) finished: u64,
    pub(super) aborted: u64,
    pub(super) prompt_tokens: u64,
    pub(super) generation_tokens: u64,
    pub(super) prefix_queries: u64,
    pub(super) prefix_hits: u64,
}

const RATES: [&str; 3] = [
    "estimated_flops_per_gpu_total",
    "estimated_read_bytes_per_gpu_total",
    "estimated_write_bytes_per_gpu_total",
];

const SECONDS: [&str; 8] = [
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_inference_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
];

#[expect(clippy::cast_precision_loss, reason = "Prometheus counts in floating point")]
fn float(count: u64) -> f64 {
    count as f64
}

struct Page<'a> {
    text: String,
    model: &'a str,
}

impl Page<'_> {
    fn family(&mut self, name: &str, kind: &str) {
        // Writing to a String cannot fail.
        let _ =
            writeln!(self.text, "# HELP vllm:{name} {}.\n# TYPE vllm:{name} {kind}", name.replace('_', " "));
    }

    /// One sample; labels stand in alphabetical order.
    fn sample(&mut self, name: &str, before_model: &str, after_model: &str, value: f64) {
        let model = self.model;
        let _ =
            writeln!(self.text, "vllm:{name}{{{before_model}model_name=\"{model}\"{after_model}}} {value:?}");
    }

    fn plain(&mut self, name: &str, kind: &str, value: f64) {
        self.family(name.strip_suffix("_total").unwrap_or(name), kind);
        self.sample(name, "engine=\"0\",", "", value);
    }

    fn by_label(&mut self, name: &str, kind: &str, label: &str, samples: &[(&str, f64)]) {
        self.family(name.strip_suffix("_total").unwrap_or(name), kind);
        for (value, number) in samples {
            self.sample(name, "engine=\"0\",", &format!(",{label}=\"{value}\""), *number);
        }
    }

    fn histogram(&mut self, name: &str, count: f64, sum: f64) {
        self.family(name, "histogram");
        self.sample(&format!("{name}_bucket"), "engine=\"0\",le=\"+Inf\",", "", count);
        self.sample(&format!("{name}_count"), "engine=\"0\",", "", count);
        self.sample(&format!("{name}_sum"), "engine=\"0\",", "", sum);
    }
}

/// The page.
pub(super) fn render(model: &str, gauges: &Gauges) -> String {
    let mut page = Page { text: String::with_capacity(16 * 1024), model };
    for name in RATES {
        page.plain(name, "counter", 0.0);
    }
    load(&mut page, gauges);
    tokens(&mut page, &gauges.totals);
    requests(&mut page, &gauges.totals);
    page.family("cache_config_info", "gauge");
    let (size, blocks) = (gauges.block_size, gauges.num_gpu_blocks);
    let caching = if gauges.prefix_caching { "True" } else { "False" };
    // Carries no model, unlike all others.
    let _ = writeln!(
        page.text,
        "vllm:cache_config_info{{_block_size_resolved=\"True\",block_size=\"{size}\",cache_dtype=\"auto\",\
         cache_hit_alignment_tokens=\"None\",effective_attention_block_size=\"{size}\",\
         enable_prefix_caching=\"{caching}\",engine=\"0\",num_gpu_blocks=\"{blocks}\"}} 1.0"
    );
    page.text
}

fn load(page: &mut Page<'_>, gauges: &Gauges) {
    page.plain("num_requests_running", "gauge", gauges.running);
    page.plain("num_requests_waiting", "gauge", gauges.waiting);
    let reasons = [("capacity", gauges.waiting), ("deferred", 0.0)];
    page.by_label("num_requests_waiting_by_reason", "gauge", "reason", &reasons);
    let states = [SleepState::Awake, SleepState::WeightsOffloaded, SleepState::DiscardAll];
    let states = states.map(|state| (state.name(), f64::from(u8::from(gauges.sleep == state))));
    page.by_label("engine_sleep_state", "gauge", "sleep_state", &states);
    page.plain("kv_cache_usage_perc", "gauge", gauges.kv_cache_usage);
}

fn tokens(page: &mut Page<'_>, totals: &Totals) {
    let (prompt, hits) = (float(totals.prompt_tokens), float(totals.prefix_hits));
    let queries = float(totals.prefix_queries);
    for (name, value) in [
        ("prefix_cache_queries_total", queries),
        ("prefix_cache_hits_total", hits),
        ("external_prefix_cache_queries_total", 0.0),
        ("external_prefix_cache_hits_total", 0.0),
        ("mm_cache_queries_total", 0.0),
        ("mm_cache_hits_total", 0.0),
        ("num_preemptions_total", 0.0),
        ("prompt_tokens_total", prompt),
    ] {
        page.plain(name, "counter", value);
    }
    let sources =
        [("local_compute", prompt - hits), ("local_cache_hit", hits), ("external_kv_transfer", 0.0)];
    page.by_label("prompt_tokens_by_source_total", "counter", "source", &sources);
    page.plain("prompt_tokens_cached_total", "counter", hits);
    let sources =
        [("device", hits), ("host", 0.0), ("p2p", 0.0), ("disk", 0.0), ("external_unspecified", 0.0)];
    page.by_label("prompt_tokens_cached_by_source_total", "counter", "source", &sources);
    page.plain("generation_tokens_total", "counter", float(totals.generation_tokens));
}

fn requests(page: &mut Page<'_>, totals: &Totals) {
    page.family("request_success", "counter");
    let finished = float(totals.finished);
    for (reason, count) in [
        ("stop", 0.0),
        ("length", finished),
        ("abort", float(totals.aborted)),
        ("error", 0.0),
        ("repetition", 0.0),
    ] {
        let labels = format!("engine=\"0\",finished_reason=\"{reason}\",");
        page.sample("request_success_total", &labels, "", count);
    }
    page.family("admission_rejections", "counter");
    for reason in ["max_num_queued_reqs", "max_num_queued_tokens"] {
        page.sample("admission_rejections_total", "", &format!(",reason=\"{reason}\""), 0.0);
    }
    let (prompt, generated) = (float(totals.prompt_tokens), float(totals.generation_tokens));
    for (name, sum) in [
        ("request_prompt_tokens", prompt),
        ("request_generation_tokens", generated),
        ("iteration_tokens_total", prompt + generated),
        ("request_max_num_generation_tokens", generated),
        ("request_params_n", finished),
        ("request_params_max_tokens", generated),
        ("request_num_preemptions", 0.0),
        ("request_prefill_kv_computed_tokens", prompt - float(totals.prefix_hits)),
    ] {
        page.histogram(name, finished, sum);
    }
    for name in SECONDS {
        page.histogram(name, finished, 0.0);
    }
}
