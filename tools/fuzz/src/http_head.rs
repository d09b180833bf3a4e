//! Requests over one connection: the same for every split, of one mind with httparse, and read the same when written
//! again.
//!
//! Input: one byte for the limits, the cuts, then what the client sends.

use sizland_chat::wire::body::ChunkedDecoder;
use sizland_chat::wire::http::{BodyLength, Framing, HEADERS_MAX, Head, Limits, Methods, Reject, Status, parse_head};
use sizland_chat::wire::masking::mask_token;
use sizland_chat::wire::target::parse_target;
use sizland_chat::wire::upgrade::upgrade;

use super::input::{Input, Splits};

const LIMITS: [Limits; 4] = [
    Limits { header_bytes_max: 16 * 1024, body_bytes_max: 64 * 1024, methods: Methods::Implemented },
    Limits { header_bytes_max: 256, body_bytes_max: 16, methods: Methods::Implemented },
    Limits { header_bytes_max: 64, body_bytes_max: 0, methods: Methods::Implemented },
    Limits { header_bytes_max: 1024, body_bytes_max: usize::MAX, methods: Methods::Implemented },
];

/// Reads all requests in one piece, in the pieces given and byte by byte; then looks at each that was accepted.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let limits = input.pick(&LIMITS);
    let splits = Splits::read(&mut input);
    let stream = input.rest();

    let whole = Read::of([stream].into_iter(), &limits);
    assert_eq!(whole, Read::of(splits.pieces(stream), &limits), "the pieces make a difference");
    // Each byte looks at the request line again, so long streams would be slow.
    if stream.len() <= 2048 {
        assert_eq!(whole, Read::of(stream.chunks(1), &limits), "single bytes make a difference");
    }
    let mut rest = stream;
    for request in &whole.requests {
        check_request(request, rest, &limits);
        rest = &rest[request.framing.head_len + request.body_len..];
    }
}

/// A request, owned.
#[derive(Debug, PartialEq)]
struct Request {
    method: String,
    target: String,
    authority: Option<String>,
    minor_version: u8,
    headers: Vec<(String, Vec<u8>)>,
    framing: Framing,
    body: Vec<u8>,
    /// Bytes of the body as it was sent.
    body_len: usize,
}

impl Request {
    fn new(head: &Head<'_>, framing: Framing) -> Self {
        let headers = head.headers().map(|(name, value)| (name.to_owned(), value.to_vec()));
        Self {
            method: head.method.to_owned(),
            target: head.target.to_owned(),
            authority: head.authority.map(str::to_owned),
            minor_version: head.minor_version,
            headers: headers.collect(),
            framing,
            body: Vec::new(),
            body_len: 0,
        }
    }
}

/// What a connection has read: the requests that are complete, and why it stopped.
#[derive(Debug, Default, PartialEq)]
struct Read {
    requests: Vec<Request>,
    reject: Option<Reject>,
    is_last: bool,
}

impl Read {
    fn of<'a>(pieces: impl Iterator<Item = &'a [u8]>, limits: &Limits) -> Self {
        let (mut read, mut buffer) = (Self::default(), Vec::new());
        let (mut at, mut scanned) = (0, 0);
        let mut open = None;
        for piece in pieces {
            buffer.extend_from_slice(piece);
            while read.reject.is_none() && !read.is_last {
                match step(&buffer[at..], &mut scanned, &mut open, limits) {
                    Ok(Some(request)) => {
                        at += request.framing.head_len + request.body_len;
                        read.is_last = !request.framing.keep_alive;
                        read.requests.push(request);
                        scanned = 0;
                    }
                    Ok(None) => break,
                    Err(reject) => read.reject = Some(reject),
                }
            }
        }
        read
    }
}

/// Goes on with the request at the start of `input`; `open` is the one whose body is under way, with its decoder.
fn step(
    input: &[u8],
    scanned: &mut usize,
    open: &mut Option<(Request, ChunkedDecoder)>,
    limits: &Limits,
) -> Result<Option<Request>, Reject> {
    if open.is_none() {
        let Status::Complete((head, framing)) = parse_head(input, scanned, limits)? else { return Ok(None) };
        *open = Some((Request::new(&head, framing), ChunkedDecoder::new()));
    }
    let Some((request, decoder)) = open else { return Ok(None) };
    let body = &input[request.framing.head_len..];
    let is_complete = match request.framing.body {
        BodyLength::None => true,
        BodyLength::Length(length) => {
            assert!(length <= limits.body_bytes_max);
            if body.len() >= length {
                request.body.extend_from_slice(&body[..length]);
                request.body_len = length;
            }
            body.len() >= length
        }
        BodyLength::Chunked => {
            let fresh = &body[request.body_len..];
            let (used, is_complete) = decoder.decode(fresh, &mut request.body, limits.body_bytes_max)?;
            assert!(is_complete || used == fresh.len(), "what is not the end is consumed");
            assert!(request.body.len() <= limits.body_bytes_max);
            request.body_len += used;
            is_complete
        }
    };
    Ok(if is_complete { open.take().map(|(request, _)| request) } else { None })
}

fn check_request(request: &Request, input: &[u8], limits: &Limits) {
    let framing = request.framing;
    assert!(framing.head_len <= limits.header_bytes_max);
    let (head, body) = input.split_at(framing.head_len);
    compare_head(request, head);
    if framing.body == BodyLength::Chunked {
        compare_chunks(request, &body[..request.body_len]);
    }
    check_again(request);
    check_target(&request.target);
    let mut scanned = 0;
    if let Ok(Status::Complete((head, framing))) = parse_head(input, &mut scanned, limits)
        && let Ok(upgrade) = upgrade(&head, &framing)
    {
        assert!(head.method == "GET" && !upgrade.accept.is_empty());
    }
}

/// httparse accepts every head that we accept, and reads the same, but for versions above 1.1, which it refuses.
fn compare_head(request: &Request, head: &[u8]) {
    let mut known = head.to_vec();
    let version = head.windows(8).position(|window| window == b" HTTP/1.").expect("every head has a version");
    known[version + 8] = known[version + 8].min(b'1');
    let head = &known[..];
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut theirs = httparse::Request::new(&mut headers);
    assert_eq!(theirs.parse(head), Ok(httparse::Status::Complete(head.len())));
    assert_eq!(theirs.method, Some(&*request.method));
    assert_eq!(theirs.version, Some(request.minor_version));
    let path = theirs.path.unwrap_or_default();
    assert!(path.ends_with(request.target.trim_start_matches(['*', '/'])), "{path}");
    assert!(request.authority.as_deref().is_none_or(|authority| path.contains(authority)));
    let fields = theirs.headers.iter().map(|header| (header.name.to_owned(), header.value.to_vec()));
    assert!(fields.eq(request.headers.iter().cloned()));
}

/// httparse finds the same chunks.
fn compare_chunks(request: &Request, mut body: &[u8]) {
    let mut data = Vec::new();
    loop {
        let Ok(httparse::Status::Complete((used, size))) = httparse::parse_chunk_size(body) else {
            panic!("they refuse the chunk that we accept: {body:?}");
        };
        body = &body[used..];
        let Some(size) = usize::try_from(size).ok().filter(|&size| size > 0) else { break };
        data.extend_from_slice(&body[..size]);
        assert!(body[size..].starts_with(b"\r\n"));
        body = &body[size + 2..];
    }
    assert_eq!(data, request.body);
    assert!(body == b"\r\n" || body.ends_with(b"\r\n\r\n"), "nothing behind the trailers is consumed");
}

/// A head that is written as it was read is read again as it was.
fn check_again(request: &Request) {
    let mut text = format!("{} ", request.method).into_bytes();
    match &request.authority {
        Some(authority) if request.target == "*" => text.extend(format!("http://{authority}").bytes()),
        Some(authority) => text.extend(format!("http://{authority}{}", request.target).bytes()),
        None => text.extend(request.target.bytes()),
    }
    text.extend(format!(" HTTP/1.{}\r\n", request.minor_version).bytes());
    for (name, value) in &request.headers {
        text.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    text.extend(b"\r\n");
    let limits = Limits { header_bytes_max: usize::MAX, body_bytes_max: usize::MAX, methods: Methods::Implemented };
    let again = match parse_head(&text, &mut 0, &limits) {
        Ok(Status::Complete((head, framing))) => Request::new(&head, framing),
        other => panic!("{other:?} of {}", String::from_utf8_lossy(&text)),
    };
    assert_eq!(again.framing, Framing { head_len: text.len(), ..request.framing });
    let of = |request: &Request| (request.method.clone(), request.target.clone(), request.authority.clone());
    assert_eq!(of(&again), of(request));
    assert_eq!((again.minor_version, &again.headers), (request.minor_version, &request.headers));
}

/// The segments of a path, encoded again, are the same segments.
fn check_target(text: &str) {
    let masked = mask_token(text);
    assert_eq!(mask_token(&masked), masked, "what is masked stays masked");
    let Ok(target) = parse_target(text) else { return };
    target.pairs().for_each(drop);
    let encode = |segment: &str| segment.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
    let path: String = target.segments.iter().map(|segment| format!("/{}", encode(segment))).collect();
    let again = parse_target(&path).map(|target| target.segments.iter().map(|s| s.to_string()).collect::<Vec<_>>());
    // A path with one empty segment is written like one without any.
    let expected: Vec<String> = target.segments.iter().map(|segment| segment.to_string()).collect();
    assert_eq!(again, Ok(if expected == [""] { Vec::new() } else { expected }));
}
