//! Clients that read slowly or not at all.

use super::*;

const MIB: usize = 1 << 20;
const WHOLE: usize = 64 * MIB;

/// Sends 64 MiB as fast as they are taken, telling in `sent` how far it is. The last byte of each chunk is its number.
async fn send_all(mut socket: TcpStream, sent: &AtomicUsize) {
    for number in 0..WHOLE / 65_536 {
        let mut data = vec![b'x'; 65_536];
        data[65_535] = number.to_le_bytes()[0];
        socket.write_all(&chunk(&data)).await.unwrap();
        sent.fetch_add(data.len(), Ordering::Relaxed);
    }
    socket.write_all(b"0\r\n\r\n").await.unwrap();
}

/// Waits until `sent` grows no more. A machine that is slow makes this come early, which spoils no assertion.
async fn stalled(sent: &AtomicUsize) -> usize {
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = sent.load(Ordering::Relaxed);
        if now == before && now > 0 {
            return now;
        }
        before = now;
    }
}

fn assert_whole(body: &[u8]) {
    assert_eq!(body.len(), WHOLE);
    for (number, data) in body.chunks(65_536).enumerate() {
        assert_eq!(data[65_535], number.to_le_bytes()[0]);
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_engine_up_and_loses_nothing() {
    let (actor, world) = Actor::new("").await;
    let sent = Arc::new(AtomicUsize::new(0));
    let (response, socket) = tokio::join!(post(&world, 1), actor.start_stream());
    let mut engine = JoinSet::new();
    let progress = Arc::clone(&sent);
    engine.spawn(async move { send_all(socket, &progress).await });
    let far = stalled(&sent).await;
    // What the kernel's buffers take on two connections; the gateway itself takes a few chunks.
    assert!(far < WHOLE / 2, "{far} bytes went into nowhere");
    assert_whole(&response.bytes().await.unwrap());
}

#[tokio::test]
async fn a_client_of_http2_that_does_not_read_holds_the_engine_up_and_loses_nothing() {
    let (actor, world) = Actor::new("").await;
    let sent = Arc::new(AtomicUsize::new(0));
    let mut client = Http2::connect(world.address).await;
    let (response, socket) = tokio::join!(h2_chat(&mut client, &stream_of(1)), actor.start_stream());
    let mut body = response.unwrap().into_body();
    let mut engine = JoinSet::new();
    let progress = Arc::clone(&sent);
    engine.spawn(async move { send_all(socket, &progress).await });
    let far = stalled(&sent).await;
    assert!(far < WHOLE / 2, "{far} bytes went into nowhere");
    let mut whole = Vec::with_capacity(WHOLE);
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        whole.extend_from_slice(&data);
    }
    assert_whole(&whole);
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off_and_the_engine_stopped() {
    let (actor, world) = Actor::new("timeouts: {between_bytes: 200ms}").await;
    let _client = raw_chat(&world, &stream_of(1)).await;
    let mut socket = actor.start_stream().await;
    let data = chunk(&vec![b'x'; 65_536]);
    while socket.write_all(&data).await.is_ok() {}
    let entry = world.last_entry().await;
    assert_eq!((&entry["status"], &entry["outcome"]), (&200.into(), &"client_gone".into()));
}

#[tokio::test]
async fn a_client_of_http2_that_never_reads_is_cut_off_and_its_neighbours_are_served() {
    let (actor, world) = Actor::new("timeouts: {between_bytes: 200ms}").await;
    let mut client = Http2::connect(world.address).await;
    let (response, mut socket) = tokio::join!(h2_chat(&mut client, &stream_of(1)), actor.start_stream());
    let _unread = response.unwrap().into_body();
    let data = chunk(&vec![b'x'; 65_536]);
    while socket.write_all(&data).await.is_ok() {}
    let neighbour = h2_chat(&mut client, &stream_of(1));
    let (neighbour, _socket) = tokio::join!(neighbour, actor.start_stream());
    assert_eq!(neighbour.unwrap().status(), 200);
    world.idle().await;
}
