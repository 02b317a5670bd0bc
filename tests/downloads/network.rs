//! Servers that break off, lie, trickle, redirect and fail.

use super::*;
use kiln::download::MinimumRate;
use kiln::error::{Fault, Kind};
use kiln::size::ByteSize;

const MIB: usize = 1 << 20;

#[test]
fn a_server_that_breaks_off_is_asked_for_the_rest() {
    let body = noise(3 * MIB);
    let served = body.clone();
    let server = Server::start(move |seen, reply| {
        let from = reply.good_head(seen, served.len())?;
        reply.send(&served[from..served.len().min(from + MIB)])
    });
    let mut bench = Bench::new();
    bench.fetch(&request(&[server.url("a")], &body)).unwrap();
    let asked: Vec<_> = server.seen().iter().map(|seen| (seen.from, seen.sent)).collect();
    assert_eq!(asked, [(None, MIB), (Some(MIB), MIB), (Some(2 * MIB), MIB)]);
    assert!(
        bench.notices[0].contains("broke off at byte 1048576 of 3145728: Peer disconnected; trying again"),
        "{:?}",
        bench.notices
    );
}

#[test]
fn a_server_without_ranges_starts_over() {
    let body = noise(2 * MIB);
    let served = body.clone();
    let server = Server::start(move |seen, reply| {
        reply.head(200, &[("Content-Length", &served.len().to_string())])?;
        reply.send(&served[..if seen.number == 0 { MIB } else { served.len() }])
    });
    Bench::new().fetch(&request(&[server.url("a")], &body)).unwrap();
    let seen = server.seen();
    assert_eq!((seen.len(), seen[1].from, seen[1].if_range.as_deref()), (2, Some(MIB), None));
    assert_eq!(seen[1].sent, 2 * MIB);
}

#[test]
fn a_server_that_lies_about_ranges_is_asked_for_all_of_it() {
    let body = noise(2 * MIB);
    let ranges = ["bytes 0-2097151/2097152", "bytes 1048576-2097150/2097152", "bytes 1048576-2097151/2097153", "x", ""];
    for range in ranges {
        let served = body.clone();
        let server = Server::start(move |seen, reply| {
            if let Some(from) = seen.from {
                reply.head(206, &[("Content-Length", &MIB.to_string()), ("Content-Range", range)])?;
                return reply.send(&served[from..]);
            }
            reply.head(200, &[("Content-Length", &served.len().to_string())])?;
            reply.send(&served[..if seen.number == 0 { MIB } else { served.len() }])
        });
        Bench::new().fetch(&request(&[server.url("a")], &body)).unwrap();
        let asked: Vec<_> = server.seen().iter().map(|seen| seen.from).collect();
        assert_eq!(asked, [None, Some(MIB), None], "{range}");
    }
}

#[test]
fn a_rest_of_another_file_is_not_the_servers_last_chance() {
    let (body, other) = (noise(2 * MIB), noise(2 * MIB + 8));
    let served = body.clone();
    // It says that the rest is from the same file, and lies.
    let server = Server::start(move |seen, reply| {
        let from = reply.good_head(seen, served.len())?;
        match seen.number {
            0 => reply.send(&served[..MIB]),
            1 => reply.send(&other[8 + from..]),
            _ => reply.send(&served[from..]),
        }
    });
    Bench::new().fetch(&request(&[server.url("a")], &body)).unwrap();
    let asked: Vec<_> = server.seen().iter().map(|seen| (seen.from, seen.sent)).collect();
    assert_eq!(asked, [(None, MIB), (Some(MIB), MIB), (None, 2 * MIB)]);
}

#[test]
fn the_next_mirror_goes_on_where_the_last_one_broke_off() {
    let body = noise(2 * MIB);
    let served = body.clone();
    let first = Server::start(move |seen, reply| {
        let from = reply.good_head(seen, served.len())?;
        if from == 0 { reply.send(&served[..MIB]) } else { Ok(()) }
    });
    let second = Server::of(&body);
    let mut bench = Bench::new();
    bench.fetch(&request(&[first.url("a"), second.url("b")], &body)).unwrap();
    assert_eq!(first.seen().len(), 3);
    let seen = second.seen();
    // What the first one calls the file is nothing to the second.
    assert_eq!((seen[0].from, seen[0].if_range.as_deref(), seen[0].sent), (Some(MIB), None, MIB));
    assert!(bench.notices.iter().any(|text| text.contains("going on with http://127.0.0.1:")), "{:?}", bench.notices);
}

#[test]
fn a_server_in_trouble_is_asked_again_and_one_without_the_file_is_not() {
    let body = noise(1000);
    let served = body.clone();
    let server = Server::start(move |seen, reply| match seen.number {
        0 => reply.head(503, &[("Content-Length", "0")]),
        1 => Ok(()),
        _ => reply.file(seen, &served),
    });
    let missing = Server::start(|_, reply| reply.head(404, &[("Content-Length", "0")]));
    let mut bench = Bench::new();
    bench.fetch(&request(&[missing.url("a"), server.url("a")], &body)).unwrap();
    assert_eq!((missing.seen().len(), server.seen().len()), (1, 3));
}

#[test]
fn wrong_bytes_leave_nothing_and_the_next_mirror_is_asked() {
    let (body, other) = (noise(MIB), Arc::new(vec![7; MIB]));
    let (wrong, right) = (Server::of(&other), Server::of(&body));
    let mut bench = Bench::new();
    let error = bench.fetch(&request(&[wrong.url("a"), wrong.url("b")], &body)).unwrap_err();
    assert_eq!(error.kind(), Kind::Base);
    assert_eq!(error.to_string(), "cannot download a from any of 2 places");
    for (line, name) in error.evidence().iter().zip(["a", "b"]) {
        let expected = format!(
            "{}: the digest is wrong: expected sha256 {}, found {}",
            wrong.url(name),
            sha256(&body),
            sha256(&other)
        );
        assert_eq!(*line, expected);
    }
    assert_eq!(bench.files(), [""; 0].map(PathBuf::from));
    bench.fetch(&request(&[wrong.url("a"), right.url("b")], &body)).unwrap();
    assert!(bench.notices.iter().any(|text| text.starts_with(&wrong.url("a"))), "{:?}", bench.notices);
    assert_eq!(bench.files().len(), 1);
}

#[test]
fn every_mirror_that_fails_is_listed_with_its_reason() {
    let gone = Server::start(|_, reply| reply.head(410, &[("Content-Length", "0")]));
    let ill = Server::start(|_, reply| reply.head(500, &[("Content-Length", "0")]));
    let looping = Server::start(|_, reply| reply.head(302, &[("Location", "/again"), ("Content-Length", "0")]));
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/a", listener.local_addr().unwrap())
    };
    let nonsense = Server::start(|_, reply| reply.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"));
    let urls = [gone.url("a"), ill.url("a"), looping.url("a"), closed, nonsense.url("a")];
    let mut bench = Bench::new();
    let error = bench.fetch(&request(&urls, b"x")).unwrap_err();
    let evidence = error.evidence();
    let expected = [
        "the server answers 410 (Gone)",
        "the server answers 500 (Internal Server Error)",
        "more than 10 redirections",
        "Connection refused",
        "",
    ];
    for ((line, url), text) in evidence.iter().zip(&urls).zip(expected) {
        assert!(line.starts_with(url.as_str()) && line.contains(text), "{line}: {text}");
    }
    assert_eq!((evidence.len(), error.kind().exit_code()), (5, 5));
    let asked = [&gone, &ill, &looping, &nonsense].map(|server| server.seen().len());
    assert_eq!(asked, [1, 3, 11, 3]);
    assert!(bench.files().is_empty());
}

#[test]
fn a_silent_server_is_not_waited_for() {
    let silent = |bytes: &'static [u8]| {
        Server::start(move |_, reply| {
            reply.send(bytes)?;
            thread::sleep(Duration::from_secs(60));
            Ok(())
        })
    };
    for server in [silent(b""), silent(b"HTTP/1.1 200 OK\r\nContent-Le"), silent(b"HTTP/1.1 200 OK\r\n\r\nhal")] {
        let mut request = request(&[server.url("a")], b"half");
        (request.limits.silence, request.limits.attempts) = (Duration::from_millis(300), 1);
        let error = Bench::new().fetch(&request).unwrap_err();
        assert!(error.to_string().ends_with("the server fell silent"), "{error}");
    }
}

#[test]
fn a_redirection_is_followed() {
    let body = noise(1000);
    let server = Server::of(&body);
    let to = server.url("there");
    let pointing = Server::start(move |_, reply| reply.head(301, &[("Location", &to), ("Content-Length", "0")]));
    Bench::new().fetch(&request(&[pointing.url("a")], &body)).unwrap();
    assert_eq!(server.seen()[0].path, "/there");
}

#[test]
fn a_body_without_end_is_cut_off() {
    let endless = Server::start(|_, reply| {
        reply.head(200, &[])?;
        loop {
            reply.send(&[0; 8 << 10])?;
        }
    });
    let huge = Server::start(|_, reply| reply.head(200, &[("Content-Length", "99999999999")]));
    let longer = Server::start(|_, reply| {
        reply.head(200, &[("Content-Length", "4")])?;
        reply.send(b"right and more")
    });
    let mut bench = Bench::new();
    for server in [endless, huge] {
        let mut request = request(&[server.url("a")], b"right");
        request.limits.download = ByteSize::mib(1);
        let error = bench.fetch(&request).unwrap_err();
        assert!(matches!(problems(&error)[..], [TransferError::TooLarge(_)]), "{error}");
        assert_eq!(server.seen().len(), 1);
    }
    // Nothing behind what was announced is read.
    let found = bench.fetch(&request(&[longer.url("a")], b"righ")).unwrap();
    assert_eq!(found.bytes, 4);
}

#[test]
fn a_rest_without_end_is_cut_off_where_the_file_ends() {
    let body = noise(MIB);
    let served = body.clone();
    let server = Server::start(move |seen, reply| {
        let Some(from) = seen.from else {
            reply.head(200, &[("Content-Length", &served.len().to_string())])?;
            return reply.send(&served[..MIB / 2]);
        };
        reply.head(206, &[("Content-Range", &format!("bytes {from}-{}/{MIB}", MIB - 1))])?;
        loop {
            reply.send(&served)?;
        }
    });
    let error = Bench::new().fetch(&request(&[server.url("a")], &body)).unwrap_err();
    let told = error.to_string();
    // What has come may end exactly where the file does: then the next attempt finds it whole, and another file.
    let is_refused = ["more bytes came than were announced", "what was there of the file does not fit the rest"];
    assert!(is_refused.iter().any(|end| told.ends_with(end)), "{told}");
}

#[test]
fn a_server_that_trickles_is_left() {
    let body = noise(MIB);
    let served = body.clone();
    let server = Server::start(move |seen, reply| {
        let from = reply.good_head(seen, served.len())?;
        for byte in served[from..].chunks(1) {
            reply.send(byte)?;
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    });
    let fast = Server::of(&body);
    let mut request = request(&[server.url("a"), fast.url("a")], &body);
    request.limits.pace = MinimumRate { least: ByteSize::mib(1), within: Duration::from_secs(1) };
    request.limits.attempts = 1;
    let mut bench = Bench::new();
    bench.fetch(&request).unwrap();
    assert!(bench.notices[0].contains("no more than "), "{:?}", bench.notices);
    // What trickled in counts.
    assert!(fast.seen()[0].from.is_some());
}

#[test]
fn a_caller_that_stops_is_heard_whatever_the_server_does() {
    let body = noise(2 * MIB);
    let served = body.clone();
    let server = Server::start(move |seen, reply| {
        let from = reply.good_head(seen, served.len())?;
        reply.send(&served[from..from + MIB])?;
        if seen.number == 0 {
            thread::sleep(Duration::from_secs(60));
        }
        Ok(())
    });
    let mut bench = Bench::new();
    let request = request(&[server.url("a")], &body);
    let cancel = CancellationToken::new();
    let mut stop = |progress: DownloadProgress| {
        if progress.done == 1_048_576 {
            cancel.cancel();
        }
    };
    let stopped = bench
        .downloads(NetworkMode::Online)
        .fetch(&request, &mut DownloadWatch::new(&cancel, &mut stop, &mut |_| {}))
        .unwrap_err();
    assert_eq!(stopped.kind(), Kind::Interrupted);
    bench.fetch(&request).unwrap();
    assert_eq!(server.seen()[1].from, Some(MIB));
}
