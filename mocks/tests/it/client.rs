//! A client that shows the bytes: no library between the test and the socket.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer taken apart.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status_line: String,
    /// In their order, with their case.
    pub(crate) headers: Vec<(String, String)>,
    /// Without the chunked framing.
    pub(crate) body: Vec<u8>,
    /// The chunks, where there were any.
    pub(crate) chunks: Vec<Vec<u8>>,
    /// Whether the framing says that the body is complete.
    pub(crate) complete: bool,
}

impl Reply {
    pub(crate) fn status(&self) -> u16 {
        self.status_line.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// The bytes of a request; `headers` are lines without their ends.
pub(crate) fn request(method: &str, path: &str, headers: &[&str], body: &str) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: mock\r\n");
    for header in headers {
        text.extend([header, "\r\n"]);
    }
    if method == "POST" {
        if !headers.iter().any(|header| header.starts_with("content-type")) {
            text += "content-type: application/json\r\n";
        }
        text.extend(["content-length: ", &body.len().to_string(), "\r\n"]);
    }
    (text + "\r\n" + body).into_bytes()
}

/// Sends one request on a connection of its own.
pub(crate) async fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[&str],
    body: &str,
) -> Reply {
    let mut stream = TcpStream::connect(address).await.unwrap();
    exchange(&mut stream, method, path, headers, body).await.expect("an answer")
}

pub(crate) async fn post(address: SocketAddr, path: &str, body: &str) -> Reply {
    send(address, "POST", path, &[], body).await
}

/// Sends one request and reads its answer; `None` when the connection ends before the head does.
pub(crate) async fn exchange(
    stream: &mut TcpStream,
    method: &str,
    path: &str,
    headers: &[&str],
    body: &str,
) -> Option<Reply> {
    stream.write_all(&request(method, path, headers, body)).await.ok()?;
    read(stream).await
}

/// Reads one answer. An error of the socket counts as its end.
pub(crate) async fn read(stream: &mut TcpStream) -> Option<Reply> {
    let mut input = Vec::new();
    let head_end = loop {
        if let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        input.push(stream.read_u8().await.ok()?);
    };
    let head = String::from_utf8(input.drain(..head_end + 4).collect()).unwrap();
    let mut lines = head.trim_end().split("\r\n");
    let status_line = lines.next().unwrap().to_owned();
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let mut reply = Reply { status_line, headers, body: Vec::new(), chunks: Vec::new(), complete: false };
    if reply.header("transfer-encoding") == Some("chunked") {
        reply.complete = read_chunks(stream, &mut reply).await.is_ok();
    } else {
        let length: usize = reply.header("content-length").map_or(0, |value| value.parse().unwrap());
        while reply.body.len() < length {
            let Ok(byte) = stream.read_u8().await else { break };
            reply.body.push(byte);
        }
        reply.complete = reply.body.len() == length;
    }
    Some(reply)
}

async fn read_chunks(stream: &mut TcpStream, reply: &mut Reply) -> std::io::Result<()> {
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(stream.read_u8().await?);
        }
        let size = usize::from_str_radix(str::from_utf8(&line).unwrap().trim_end(), 16).unwrap();
        let mut chunk = vec![0; size + 2];
        stream.read_exact(&mut chunk).await?;
        assert!(chunk.ends_with(b"\r\n"));
        chunk.truncate(size);
        if size == 0 {
            return Ok(());
        }
        reply.body.extend_from_slice(&chunk);
        reply.chunks.push(chunk);
    }
}
