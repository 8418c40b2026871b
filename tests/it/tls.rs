//! TLS on both sides, with the real program in front of a mock engine and certificates made on the spot.

use crate::clients::{Http1, sha256};
use crate::world::{Plan, World, chat, configuration, stream_of, within};
use bytes::Bytes;
use kvway::arguments::Doctor;
use kvway::doctor;
use mocks::{Engine, EngineOptions, Received};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What the gateway's certificate is made out to.
const NAME: &str = "gateway.test";

/// Somebody who signs certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, as PEM.
struct Identity {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self) -> Identity {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
        Identity { certificate: params.signed_by(&key, &self.0).unwrap().pem(), key: key.serialize_pem() }
    }

    fn pem(&self) -> String {
        self.0.pem()
    }
}

/// The real program with a TLS listener in front of one engine; it ends with this.
struct Gateway {
    child: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl Gateway {
    async fn start(engine: &Engine, server: &Identity, client_ca: Option<&Authority>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| write(&folder, name, text);
        let (certificate, key) = (write("server.pem", &server.certificate), write("key.pem", &server.key));
        let client_ca = client_ca
            .map(|authority| format!(", client_ca: {}", write("clients.pem", &authority.pem()).display()));
        let [address, admin] = free_addresses();
        let config = format!(
            "server: {{threads: 1, upgrade_socket: {}/upgrade.sock}}\n\
             listeners: [{{address: \"{address}\", tls: {{certificate: {}, key: {}{}}}}}]\n\
             admin: {{address: \"{admin}\"}}\n\
             log: {{access: off}}\n\
             clusters: [{{name: llama, backends: [{{id: vllm-0, address: \"{}\"}}]}}]\n",
            folder.path().display(),
            certificate.display(),
            key.display(),
            client_ca.unwrap_or_default(),
            engine.address(),
        );
        let config = write("kvway.yaml", &config);
        let child = Command::new(env!("CARGO_BIN_EXE_kvway"))
            .args(["run", "-c"])
            .arg(config)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut gateway = Self { child, address, folder };
        within(gateway.ready(admin)).await;
        gateway
    }

    /// A process has no event to wait for: it is asked until it answers, or has ended.
    async fn ready(&mut self, admin: SocketAddr) {
        let client = crate::world::client();
        loop {
            let readiness = client.get(format!("http://{admin}/readyz")).send().await;
            let listens = TcpStream::connect(self.address).await.is_ok();
            if listens && readiness.is_ok_and(|answer| answer.status().is_success()) {
                return;
            }
            let ended = self.child.try_wait().unwrap();
            let log = self.folder.path().join("log");
            assert!(ended.is_none(), "{ended:?}: {}", std::fs::read_to_string(log).unwrap());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A connection over TLS that offers `protocols`, with a client certificate or without.
    async fn connect(
        &self,
        authority: &Authority,
        protocols: &[&str],
        identity: Option<&Identity>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&authority.pem())).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots);
        let mut config = match identity {
            None => config.with_no_client_auth(),
            Some(identity) => {
                let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
                config.with_client_auth_cert(vec![certificate(&identity.certificate)], key).unwrap()
            }
        };
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let connecting =
            TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(NAME).unwrap(), tcp);
        within(connecting).await
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may have ended by itself; a test that minds has noticed.
        let _killed = self.child.kill().is_ok();
        let _waited = self.child.wait().is_ok();
    }
}

fn write(folder: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn certificate(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// An address that was free a moment ago, for a process that must be told one.
fn free_addresses() -> [SocketAddr; 2] {
    let held = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    held.each_ref().map(|listener| listener.local_addr().unwrap())
}

fn long_body() -> Vec<u8> {
    let mut body = chat(&"long ".repeat(200_000)).to_string().into_bytes();
    body.resize(1024 * 1024, b' ');
    body
}

/// What clients sent; the gateway asks for health and models by itself.
fn requests(engine: &Engine) -> Vec<Received> {
    let received = engine.received().into_iter();
    received.filter(|request| request.method == "POST").collect()
}

fn assert_arrived(engine: &Engine, body: &[u8]) {
    let received = requests(engine).pop().unwrap();
    assert_eq!((received.body_bytes, received.body_sha256.clone()), (body.len(), sha256(body)));
    assert_eq!(received.header("x-forwarded-proto"), Some("https"));
}

fn post(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

#[tokio::test]
async fn http1_over_tls_carries_long_bodies_and_streams() {
    let engine = Engine::start(EngineOptions::default()).unwrap();
    let authority = Authority::new();
    let gateway = Gateway::start(&engine, &authority.issue(), None).await;
    for protocols in [&[][..], &["http/1.1"]] {
        let stream = gateway.connect(&authority, protocols, None).await.unwrap();
        let mut client = Http1::over(stream);
        let body = long_body();
        client.send(post(&body)).await;
        assert_eq!(client.answer().await.status, 200);
        assert_arrived(&engine, &body);

        let gate = engine.hold_first_token();
        client.send(post(stream_of(5).to_string().as_bytes())).await;
        gate.waiting(1).await;
        // The rest of the answer follows: this reads its head only.
        assert_eq!(client.head().await.status, 200);
        gate.release();
        let events = client.chunks().await;
        assert!(events.starts_with(b"data: ") && events.ends_with(b"data: [DONE]\n\n"), "{events:?}");
    }
}

#[tokio::test]
async fn http2_over_tls_carries_long_bodies_and_streams() {
    let engine = Engine::start(EngineOptions::default()).unwrap();
    let authority = Authority::new();
    let gateway = Gateway::start(&engine, &authority.issue(), None).await;
    let stream = gateway.connect(&authority, &["h2", "http/1.1"], None).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let mut send = async |body: &[u8]| {
        let request = http::Request::post(format!("https://{NAME}/v1/chat/completions"));
        let (response, mut stream) = sender.send_request(request.body(()).unwrap(), false).unwrap();
        stream.send_data(Bytes::copy_from_slice(body), true).unwrap();
        within(response).await.unwrap()
    };
    let body = long_body();
    assert_eq!(send(&body).await.status(), 200);
    assert_arrived(&engine, &body);

    let gate = engine.hold_first_token();
    let answer = send(stream_of(5).to_string().as_bytes()).await;
    assert_eq!(answer.status(), 200);
    gate.release();
    let mut events = Vec::new();
    let mut answer = answer.into_body();
    while let Some(chunk) = within(answer.data()).await {
        events.extend_from_slice(&chunk.unwrap());
    }
    assert!(events.starts_with(b"data: ") && events.ends_with(b"data: [DONE]\n\n"), "{events:?}");
}

#[tokio::test]
async fn only_clients_with_a_certificate_of_the_authority_are_served() {
    let engine = Engine::start(EngineOptions::default()).unwrap();
    let (servers, clients) = (Authority::new(), Authority::new());
    let gateway = Gateway::start(&engine, &servers.issue(), Some(&clients)).await;
    let (good, foreign) = (clients.issue(), servers.issue());
    for identity in [None, Some(&foreign)] {
        // With TLS 1.3 the refusal comes after the client's side of the handshake is done.
        if let Ok(mut stream) = gateway.connect(&servers, &["http/1.1"], identity).await {
            let _sent = stream.write_all(&post(b"{}")).await.is_ok();
            let mut answer = Vec::new();
            let refused = within(stream.read_to_end(&mut answer)).await.is_err();
            assert!(refused && answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
        }
    }
    assert!(requests(&engine).is_empty());
    let stream = gateway.connect(&servers, &["http/1.1"], Some(&good)).await.unwrap();
    let mut client = Http1::over(stream);
    client.send(post(b"{}")).await;
    assert_eq!(client.answer().await.status, 200);
}

#[tokio::test]
async fn a_backend_over_tls_is_reached_and_examined_only_with_the_authority_and_name_that_are_configured() {
    let engine = Engine::start(EngineOptions::default()).unwrap();
    let (right, wrong) = (Authority::new(), Authority::new());
    let backend = Gateway::start(&engine, &right.issue(), None).await;
    let right = write(&backend.folder, "right.pem", &right.pem());
    let wrong = write(&backend.folder, "wrong.pem", &wrong.pem());
    let (right, wrong) = (right.display(), wrong.display());
    for (tls, status) in [
        (format!("ca: {right}, server_name: {NAME}"), 200),
        (format!("ca: {wrong}, server_name: {NAME}"), 502),
        (format!("ca: {right}, server_name: other.test"), 502),
        (format!("ca: {right}"), 502),
        (format!("server_name: {NAME}"), 502),
        (format!("ca: {wrong}, server_name: other.test, verify: false"), 200),
        ("verify: false".to_owned(), 200),
    ] {
        let plan = Plan {
            engines: Vec::new(),
            more: vec![format!(r#"id: a, address: "{}", tls: {{{tls}}}"#, backend.address)],
            ..Plan::default()
        };
        let config = configuration(&plan, &[], backend.folder.path());
        let doctor = Doctor { model: None, timeout: 20, patience: 0 };
        let examination = within(doctor::examine(&doctor, &config, 7)).await;
        assert_eq!(examination.findings[0].remedy.is_none(), status == 200, "{tls}: {examination:?}");
        let world = World::with(plan).await;
        engine.forget();
        let body = long_body();
        let request = world.client.post(world.url("/v1/chat/completions")).body(body.clone());
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), status, "{tls}");
        let text = answer.text().await.unwrap();
        if status == 200 {
            assert_arrived(&engine, &body);
        } else {
            let port = backend.address.port().to_string();
            for secret in [port.as_str(), "127.0.0.1", ".pem", "ertificate", NAME] {
                assert!(!text.contains(secret), "{tls}: {text}");
            }
            assert!(requests(&engine).is_empty(), "{tls}");
        }
        world.drained().await;
        let load = world.app.clusters()[0].fleet.backends()[0].load(tokio::time::Instant::now());
        assert_eq!((load.requests, load.pending_tokens, world.app.budget.used()), (0, 0, 0), "{tls}");
    }
}
