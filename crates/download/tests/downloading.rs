//! Everything a server can do wrong, and what is left of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop there")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use digest::Digest;
use download::{DownloadError, Downloader, Event, Limits, Proxies, Url, copy, part_of};
use tempfile::TempDir;

const CONTENT: &[u8] = b"a file, as far as a test is concerned";
const LIMITS: Limits = Limits {
    connect: Duration::from_secs(10),
    stall: Duration::from_millis(300),
    total: Duration::from_secs(20),
};

/// A server that answers each connection with the next answer, and the last one again and again.
struct Server {
    url: Url,
    ranges: Arc<Mutex<Vec<Option<u64>>>>,
}

type Answer = Box<dyn Fn(&mut TcpStream, u64) + Send>;

fn serve(answers: Vec<Answer>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/file", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    let ranges: Arc<Mutex<Vec<_>>> = Arc::default();
    let asked = ranges.clone();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(&stream).lines().map(Result::unwrap);
            let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let range = head
                .iter()
                .find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-'));
            let range = range.map(|start| start.parse().unwrap());
            asked.lock().unwrap().push(range);
            answers[number.min(answers.len() - 1)](&mut stream, range.unwrap_or(0));
            // Silent, not closed.
            open.push(stream);
        }
    });
    Server { url, ranges }
}

fn status(line: &'static str) -> Answer {
    Box::new(move |stream, _| {
        write!(
            stream,
            "HTTP/1.1 {line}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        )
        .unwrap();
    })
}

/// All of it, or the rest of it.
fn content() -> Answer {
    Box::new(|stream, start| {
        let line = if start == 0 { "200 OK" } else { "206 Partial Content" };
        let rest = &CONTENT[usize::try_from(start).unwrap()..];
        write!(stream, "HTTP/1.1 {line}\r\ncontent-length: {}\r\n\r\n", rest.len()).unwrap();
        stream.write_all(rest).unwrap();
    })
}

/// So many bytes, and then nothing.
fn stops_after(len: usize) -> Answer {
    Box::new(move |stream, _| {
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", CONTENT.len()).unwrap();
        stream.write_all(&CONTENT[..len]).unwrap();
    })
}

struct Target {
    _folder: TempDir,
    path: PathBuf,
}

fn target() -> Target {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sub/file");
    Target { _folder: folder, path }
}

fn downloader(limits: Limits) -> Downloader {
    Downloader::new(Proxies::Ignored, 0, limits).unwrap()
}

async fn check(server: &Server, target: &Target, max_len: u64) -> Result<(), DownloadError> {
    let digest = Digest::of(CONTENT);
    downloader(LIMITS)
        .file(&server.url, digest, max_len, &target.path, &|_| {})
        .await
}

fn is_empty(target: &Target) -> bool {
    fs::read_dir(target.path.parent().unwrap()).unwrap().next().is_none()
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_is_given_up() {
    let (server, begun) = (serve(vec![Box::new(|_, _| {})]), Instant::now());
    let limits = Limits {
        total: Duration::from_secs(1),
        ..LIMITS
    };
    let error = downloader(limits).document(&server.url, 100).await.unwrap_err();
    assert!(matches!(error, DownloadError::Stalled(_)), "{error:?}");
    let error = downloader(limits)
        .file(&server.url, Digest::of(CONTENT), 100, &target().path, &|_| {})
        .await
        .unwrap_err();
    assert!(matches!(error, DownloadError::Stalled(_)), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

/// Each byte comes in time, the file does not.
#[tokio::test]
async fn a_server_that_drips_is_given_up() {
    let drip: Answer = Box::new(|stream, _| {
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").unwrap();
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let server = serve(vec![drip]);
    let limits = Limits {
        total: Duration::from_secs(1),
        ..LIMITS
    };
    let error = downloader(limits).document(&server.url, 2000).await.unwrap_err();
    assert!(matches!(error, DownloadError::TooSlow(_)), "{error:?}");
}

#[tokio::test]
async fn a_download_that_stalls_goes_on_where_it_stopped() {
    let (server, target) = (serve(vec![stops_after(10), content()]), target());
    let retries = Mutex::new(0);
    downloader(LIMITS)
        .file(&server.url, Digest::of(CONTENT), 100, &target.path, &|event| {
            if let Event::Retrying(..) = event {
                *retries.lock().unwrap() += 1;
            }
        })
        .await
        .unwrap();
    assert_eq!(fs::read(&target.path).unwrap(), CONTENT);
    assert_eq!(*server.ranges.lock().unwrap(), [None, Some(10)]);
    assert_eq!(*retries.lock().unwrap(), 1);
}

#[tokio::test]
async fn a_beginning_of_another_file_is_fetched_again() {
    let (server, target) = (serve(vec![content()]), target());
    fs::create_dir_all(target.path.parent().unwrap()).unwrap();
    fs::write(part_of(&target.path), "wrong").unwrap();
    check(&server, &target, 100).await.unwrap();
    assert_eq!(fs::read(&target.path).unwrap(), CONTENT);
    assert_eq!(*server.ranges.lock().unwrap(), [Some(5), None]);
}

#[tokio::test]
async fn busy_servers_are_asked_again_and_others_are_not() {
    let server = serve(vec![status("503 Service Unavailable"), content()]);
    check(&server, &target(), 100).await.unwrap();
    for (line, code) in [("404 Not Found", 404), ("302 Found\r\nlocation: /other", 302)] {
        let server = serve(vec![status(line)]);
        let error = check(&server, &target(), 100).await.unwrap_err();
        assert!(
            matches!(error, DownloadError::Status(status) if status == code),
            "{error:?}"
        );
        assert_eq!(server.ranges.lock().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn wrong_and_endless_files_leave_nothing() {
    let wrong: Answer = Box::new(|stream, _| {
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil").unwrap();
    });
    let (server, there) = (serve(vec![wrong]), target());
    let error = check(&server, &there, 100).await.unwrap_err();
    assert!(matches!(error, DownloadError::Digest { .. }), "{error:?}");
    assert_eq!(server.ranges.lock().unwrap().len(), 1);
    assert!(is_empty(&there));

    let (server, there) = (serve(vec![content()]), target());
    let error = check(&server, &there, CONTENT.len() as u64 - 1).await.unwrap_err();
    assert!(matches!(error, DownloadError::TooLong(_)), "{error:?}");
    assert!(is_empty(&there));
    let error = downloader(LIMITS).document(&server.url, CONTENT.len() - 1).await;
    assert!(matches!(error, Err(DownloadError::TooLong(_))));
}

#[tokio::test]
async fn a_download_of_which_nothing_came_leaves_nothing() {
    let there = target();
    check(&serve(vec![status("404 Not Found")]), &there, 100)
        .await
        .unwrap_err();
    assert!(is_empty(&there));

    let limits = Limits {
        total: Duration::from_secs(1),
        ..LIMITS
    };
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let unreachable = format!("http://{closed}/file").parse().unwrap();
    let silent = serve(vec![Box::new(|_, _| {})]).url;
    for url in [unreachable, silent] {
        downloader(limits)
            .file(&url, Digest::of(CONTENT), 100, &there.path, &|_| {})
            .await
            .unwrap_err();
        assert!(is_empty(&there), "{url}");
    }
}

/// What an earlier download left is worth something, whatever the server says today.
#[tokio::test]
async fn a_refusal_leaves_what_there_is_of_the_file() {
    let there = target();
    let part = part_of(&there.path);
    fs::create_dir_all(part.parent().unwrap()).unwrap();
    fs::write(&part, &CONTENT[..4]).unwrap();
    check(&serve(vec![status("404 Not Found")]), &there, 100)
        .await
        .unwrap_err();
    assert_eq!(fs::read(&part).unwrap(), &CONTENT[..4]);
}

#[tokio::test]
async fn a_download_that_is_dropped_keeps_what_it_has() {
    let (server, target) = (serve(vec![stops_after(10)]), target());
    let received = tokio::sync::Notify::new();
    let progress = |_: Event<'_>| received.notify_one();
    let downloader = downloader(LIMITS);
    let download = downloader.file(&server.url, Digest::of(CONTENT), 100, &target.path, &progress);
    tokio::select! {
        result = download => panic!("{result:?}"),
        () = received.notified() => {}
    }
    assert_eq!(fs::read(part_of(&target.path)).unwrap(), &CONTENT[..10]);
}

#[tokio::test]
async fn another_download_of_the_same_file_is_not_disturbed() {
    let (server, target) = (serve(vec![content()]), target());
    let part = part_of(&target.path);
    fs::create_dir_all(part.parent().unwrap()).unwrap();
    fs::write(&part, &CONTENT[..4]).unwrap();
    let other = fs::File::open(&part).unwrap();
    other.lock().unwrap();
    let limits = Limits {
        total: Duration::from_secs(1),
        ..LIMITS
    };
    let error = downloader(limits)
        .file(&server.url, Digest::of(CONTENT), 100, &target.path, &|_| {})
        .await
        .unwrap_err();
    assert!(
        matches!(&error, DownloadError::Busy(path) if *path == part),
        "{error:?}"
    );
    assert_eq!(fs::read(&part).unwrap(), &CONTENT[..4]);
    drop(other);
    check(&server, &target, 100).await.unwrap();
    assert_eq!(fs::read(&target.path).unwrap(), CONTENT);
}

#[tokio::test]
async fn a_local_file_that_cannot_be_used_is_named() {
    let there = target();
    let missing = there.path.with_file_name("missing");
    let error = copy(missing.clone(), Digest::of(CONTENT), 100, there.path.clone())
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), format!("cannot read {}", missing.display()));
}
