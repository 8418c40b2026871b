//! A round-robin balancer with nothing but Pingora in it: the floor under what a gateway built on Pingora can cost.
//!
//! Started by `kvway-bench compare-proxies`. It implements one callback, reads no body and writes no log.
use std::{net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use clap::Parser;
use pingora::{Error, ErrorType, Result, server::Server, server::configuration::ServerConf};
use pingora::{protocols::l4::socket::SocketAddr as PeerAddress, upstreams::peer::HttpPeer};
use pingora_load_balancing::{LoadBalancer, selection::RoundRobin};
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

/// Balances HTTP requests over backends in turn.
#[derive(Parser)]
#[command(name = "bare-pingora", version = "(Pingora 0.9.1)")]
struct Arguments {
    /// Address to listen on.
    #[arg(long)]
    listen: SocketAddr,
    /// Address of a backend; repeat for more.
    #[arg(long = "backend", required = true)]
    backends: Vec<SocketAddr>,
}

struct Balancer(LoadBalancer<RoundRobin>);

#[async_trait]
impl ProxyHttp for Balancer {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> Result<Box<HttpPeer>> {
        let Some(backend) = self.0.select(b"", 16) else {
            return Error::e_explain(ErrorType::ConnectNoRoute, "no backend");
        };
        match backend.addr {
            PeerAddress::Inet(address) => Ok(Box::new(HttpPeer::new(address, false, String::new()))),
            PeerAddress::Unix(_) => Error::e_explain(ErrorType::ConnectNoRoute, "not an IP address"),
        }
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let configuration = ServerConf { threads: 1, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, configuration);
    server.bootstrap();
    let balancer = Balancer(LoadBalancer::try_from_iter(arguments.backends)?);
    let mut service = http_proxy_service(&Arc::clone(&server.configuration), balancer);
    service.add_tcp(&arguments.listen.to_string());
    server.add_service(service);
    server.run_forever()
}
