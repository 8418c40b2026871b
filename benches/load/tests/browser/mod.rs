//! Chromium, driven through chromedriver: it opens a page, tells what its console and its network saw, and takes its picture.
//!
//! [`look`] holds a page to what every report must be.
use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use fantoccini::wd::{Capabilities, WebDriverCompatibleCommand};
use fantoccini::{Client, ClientBuilder};
use serde_json::{Value, json};

/// How a page is looked at.
#[derive(Clone, Copy)]
pub(crate) struct View {
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// Of the screen, for one of the page.
    pub(crate) pixels: u32,
    pub(crate) dark: bool,
}

impl View {
    pub(crate) fn wide() -> Self {
        Self { width: 1280, height: 900, pixels: 1, dark: false }
    }

    pub(crate) fn phone() -> Self {
        Self { width: 390, height: 844, pixels: 2, dark: false }
    }

    pub(crate) fn dark(self) -> Self {
        Self { dark: true, ..self }
    }
}

/// Opens the page, holds it to what every report must be, and keeps its picture under this name.
pub(crate) async fn look(page: &Path, view: View, charts: usize, name: &str) {
    let browser = Browser::start(view).await;
    browser.open(page).await;
    let seen = browser.evaluate(include_str!("seen.js")).await;
    assert_eq!(seen["charts"].as_array().unwrap().len(), charts, "{name}: {seen}");
    for chart in seen["charts"].as_array().unwrap() {
        assert!(
            chart["width"].as_f64().unwrap() > 250.0 && chart["height"].as_f64().unwrap() > 150.0,
            "{name}: {chart}"
        );
        assert!(chart["drawn"].as_u64().unwrap() > 5, "{name}: {chart}");
        assert!(chart["named"].as_bool().unwrap(), "{name}: {chart}");
    }
    assert_eq!(seen["overflow"], json!(0), "{name}: nothing is wider than the page");
    assert_eq!(seen["faint"], json!([]), "{name}: text without contrast");
    assert_eq!(seen["scripts"], json!(0), "{name}");
    let picture = browser.picture().await;
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("report-{name}.png"));
    std::fs::write(&kept, &picture).unwrap();
    let picture = Picture::read(&picture);
    assert_eq!(picture.width, view.width * view.pixels, "{name}");
    assert!(picture.height >= view.height * view.pixels, "{name}");
    assert!(picture.colours > 20, "{name}: {} colours", picture.colours);
    assert_eq!(picture.is_dark, view.dark, "{name}");
    assert_eq!(browser.complaints().await, Vec::<String>::new(), "{name}: the console is quiet");
    assert_eq!(browser.requests_beside(page).await, Vec::<String>::new(), "{name}: no network");
    browser.end().await;
}

/// A browser of its own, with an empty profile.
struct Browser {
    client: Client,
    driver: Child,
    _profile: tempfile::TempDir,
}

impl Browser {
    async fn start(view: View) -> Self {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("chromedriver is needed, `.ci/install chromium` installs it: {error}")
            });
        let lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = |line: String| {
            line.strip_suffix('.')?.rsplit_once("successfully on port ")?.1.parse::<u16>().ok()
        };
        let port = lines.map_while(Result::ok).find_map(port).expect("chromedriver tells its port");
        let profile = tempfile::tempdir().unwrap();
        let connected = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new())
            .capabilities(capabilities(view, profile.path()))
            .connect(&format!("http://127.0.0.1:{port}"))
            .await;
        let client = connected.unwrap_or_else(|error| {
            driver.kill().unwrap();
            panic!("Chromium is needed, `.ci/install chromium` installs it: {error}")
        });
        let browser = Self { client, driver, _profile: profile };
        if view.dark {
            let features = json!([{"name": "prefers-color-scheme", "value": "dark"}]);
            browser.protocol("Emulation.setEmulatedMedia", json!({"features": features})).await;
        }
        browser
    }

    /// What the browser's own first page said and asked for is forgotten.
    async fn open(&self, page: &Path) {
        self.client.goto("about:blank").await.unwrap();
        self.log("browser").await;
        self.log("performance").await;
        self.client.goto(&address(page)).await.unwrap();
    }

    /// What a script returns.
    async fn evaluate(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap()
    }

    /// The whole page as PNG, not only what fits on the screen.
    async fn picture(&self) -> Vec<u8> {
        let size = self.protocol("Page.getLayoutMetrics", json!({})).await["cssContentSize"].clone();
        let clip = json!({"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1});
        let taken = json!({"format": "png", "captureBeyondViewport": true, "clip": clip});
        let taken = self.protocol("Page.captureScreenshot", taken).await;
        base64::Engine::decode(&base64::prelude::BASE64_STANDARD, taken["data"].as_str().unwrap()).unwrap()
    }

    /// What the console was told that is not mere information.
    async fn complaints(&self) -> Vec<String> {
        let entries = self.log("browser").await;
        let loud =
            entries.iter().filter(|entry| !["INFO", "DEBUG"].contains(&entry["level"].as_str().unwrap()));
        loud.map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }

    /// Everything that was asked for beside the page.
    async fn requests_beside(&self, page: &Path) -> Vec<String> {
        let events = self.log("performance").await;
        let mut requests: Vec<String> = Vec::new();
        for event in events {
            let event: Value = serde_json::from_str(event["message"].as_str().unwrap()).unwrap();
            if event["message"]["method"] == "Network.requestWillBeSent" {
                requests.push(event["message"]["params"]["request"]["url"].as_str().unwrap().to_owned());
            }
        }
        let page = address(page);
        assert!(requests.contains(&page), "the page is not in the log of what was asked for: {requests:?}");
        requests.retain(|request| *request != page);
        requests
    }

    async fn end(mut self) {
        self.client.clone().close().await.unwrap();
        self.driver.kill().unwrap();
        self.driver.wait().unwrap();
    }

    async fn protocol(&self, command: &str, parameters: Value) -> Value {
        self.issue("goog/cdp/execute", json!({"cmd": command, "params": parameters})).await
    }

    async fn log(&self, kind: &str) -> Vec<Value> {
        self.issue("se/log", json!({"type": kind})).await.as_array().unwrap().clone()
    }

    async fn issue(&self, path: &'static str, body: Value) -> Value {
        self.client.issue_cmd(Own { path, body }).await.unwrap()
    }
}

impl Drop for Browser {
    /// For tests that fail.
    fn drop(&mut self) {
        let _ended = self.driver.kill();
        let _ended = self.driver.wait();
    }
}

fn address(page: &Path) -> String {
    format!("file://{}", page.display())
}

fn capabilities(view: View, profile: &Path) -> Capabilities {
    let mut arguments = vec![format!("--user-data-dir={}", profile.display())];
    let flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ];
    arguments.extend(flags.map(str::to_owned));
    arguments.push(format!("--window-size={},{}", view.width, view.height));
    let metrics = json!({"width": view.width, "height": view.height, "pixelRatio": view.pixels});
    let options = json!({"args": arguments, "mobileEmulation": {"deviceMetrics": metrics}});
    let logs = json!({"browser": "ALL", "performance": "ALL"});
    Capabilities::from_iter([
        ("goog:chromeOptions".to_owned(), options),
        ("goog:loggingPrefs".to_owned(), logs),
    ])
}

/// A command that chromedriver has beside the standard.
#[derive(Debug)]
struct Own {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Own {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(self.body.to_string()))
    }
}

/// What is asked of a picture.
struct Picture {
    width: u32,
    pub(crate) height: u32,
    colours: usize,
    /// By its first pixel.
    is_dark: bool,
}

impl Picture {
    fn read(png: &[u8]) -> Self {
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        let colours: HashSet<&[u8]> = pixels.chunks(info.color_type.samples()).collect();
        let is_dark = pixels[..3].iter().all(|part| *part < 80);
        Self { width: info.width, height: info.height, colours: colours.len(), is_dark }
    }
}

#[tokio::test]
async fn a_page_that_complains_and_asks_for_the_network_is_caught() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("bad.html");
    let script = "<script>console.error('broken')</script>";
    std::fs::write(&page, format!("<body>{script}<img src='http://elsewhere.invalid/x.png'>")).unwrap();
    let browser = Browser::start(View::wide()).await;
    browser.open(&page).await;
    let complaints = browser.complaints().await;
    assert!(complaints.iter().any(|complaint| complaint.contains("broken")), "{complaints:?}");
    assert_eq!(browser.requests_beside(&page).await, ["http://elsewhere.invalid/x.png"]);
    browser.end().await;
}
