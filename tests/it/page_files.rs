//! The pages without a browser: answers to a form without a script, their size, what they load, and small copies of images.

use std::net::TcpListener;

use crate::api::{BOUNDARY, assert_problem, form_of};
use crate::harness::{Response, Service, label_of, test_image};
use crate::http_server::{Answer, serve_on};

const BROWSER: (&str, &str) = ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8");

fn assert_page(response: &Response, status: u16, says: &str) {
    assert_eq!(response.status, status, "{}", response.text());
    assert_eq!(response.header("content-type"), Some("text/html; charset=utf-8"), "{}", response.text());
    assert!(response.header("content-security-policy").unwrap().contains("style-src 'self'"));
    let text = response.text();
    assert!(text.contains(says), "{text} does not say {says:?}");
    assert!(!text.contains("--") || says.contains("--"), "a person reads flags: {text}");
}

#[test]
fn form_of_a_browser_without_script_is_answered_with_pages() {
    let service = Service::start(1, &["--max-upload-bytes", "1MiB"], &[]);
    let boundary = format!("multipart/form-data; boundary={BOUNDARY}");
    let post = |files: &[(&str, &str, &[u8])]| {
        service.request("POST", "/", &[("Content-Type", boundary.as_str()), BROWSER], &form_of(files))
    };
    let label = label_of("cup.jpg");
    let name = "<b>cup</b>.jpg";
    let page = post(&[("myfile", name, &test_image("cup.jpg"))]);
    assert_page(&page, 200, &format!("<h1>{label}</h1>"));
    assert!(page.text().contains("&lt;b&gt;cup&lt;/b&gt;.jpg"), "a name became markup: {}", page.text());
    assert_page(&post(&[("myfile", "a.jpg", b"no image")]), 415, "Not an accepted image type");
    assert_page(&post(&[("myfile", "a.jpg", &test_image("hostile/half.jpg"))]), 422, "cannot be decoded");
    let large = [&b"\xff\xd8\xff"[..], &vec![0x55; 2 << 20]].concat();
    assert_page(&post(&[("myfile", "a.jpg", &large)]), 413, "at most 1 MB;");
    assert_page(&post(&[]), 400, "The request is malformed");
    assert_page(&service.request("PUT", "/", &[BROWSER], b""), 405, "Method not allowed");
    assert_page(&service.request("GET", "/results/none", &[BROWSER], b""), 404, "There is no such job");
    let cross_site = [BROWSER, ("Sec-Fetch-Site", "cross-site"), ("Origin", "https://evil.example")];
    assert_page(&service.request("POST", "/", &cross_site, b""), 403, "Another site may not send this");

    // Without a script, an address of an image is a form of its own, where the service fetches them.
    let text = service.request("GET", "/", &[], b"").text();
    assert!(!text.contains("name=\"url\"") && !text.contains("{{"), "{text}");

    // Programs are answered as before.
    let program = service.request("POST", "/", &[("Content-Type", boundary.as_str())], &form_of(&[]));
    assert_problem(&program, 400, "no file");
    let legacy = service.request(
        "POST",
        "/",
        &[("Content-Type", boundary.as_str()), ("Accept", "*/*")],
        &form_of(&[("myfile", "cup.jpg", &test_image("cup.jpg"))]),
    );
    assert_eq!((legacy.text(), legacy.header("content-type")), (label, Some("text/plain; charset=utf-8")));
    assert_problem(&service.request("GET", "/v1/jobs/none", &[BROWSER], b""), 404, "no job");
}

#[test]
fn form_for_an_address_is_answered_with_a_page() {
    let service = Service::start(1, &["--allow-image-urls", "--allow-calls-to", "127.0.0.2"], &[]);
    let listener = TcpListener::bind("127.0.0.2:0").unwrap();
    let images = serve_on(listener, |request| match request.path.as_str() {
        "/cup.jpg" => Answer::text(200, "image/jpeg", test_image("cup.jpg")),
        _ => Answer::text(404, "text/plain", "nothing"),
    });
    let text = service.request("GET", "/", &[], b"").text();
    assert!(text.contains("name=\"url\"") && text.contains("data-allowed=\"true\""), "{text}");
    let post = |url: &str| {
        let body =
            format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"url\"\r\n\r\n{url}\r\n--{BOUNDARY}--\r\n");
        let boundary = format!("multipart/form-data; boundary={BOUNDARY}");
        service.request("POST", "/", &[("Content-Type", boundary.as_str()), BROWSER], body.as_bytes())
    };
    assert_page(&post(&format!("http://{images}/cup.jpg")), 200, &format!("<h1>{}</h1>", label_of("cup.jpg")));
    assert_page(&post(&format!("http://{images}/none.jpg")), 422, "404");
    assert_page(&post("http://127.0.0.1/cup.jpg"), 400, "cannot be fetched");
}

#[test]
fn pages_need_no_other_host_and_little_to_load() {
    let service = Service::start(0, &[], &[]);
    let mut total = 0;
    let mut size_of = |path: &str| {
        let packed = service.request("GET", path, &[("Accept-Encoding", "gzip")], b"");
        assert_eq!(packed.status, 200, "{path}");
        total += packed.body.len();
        service.request("GET", path, &[], b"").text()
    };
    let mut sources = vec![size_of("/"), size_of("/favicon.svg")];
    let result = service.request("GET", &format!("/results/{}", uuid::Uuid::now_v7()), &[], b"").text();
    sources.push(result);
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/web/assets");
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    for name in names.filter(|name| !name.ends_with(".html") && name != "favicon.svg") {
        let text = size_of(&format!("/assets/{name}"));
        if !name.ends_with(".jpg") {
            sources.push(text);
        }
    }
    assert!(total <= 70_000, "the page takes {total} bytes in all");
    for source in sources {
        let outside = source.match_indices("http").find(|(at, _)| {
            let rest = &source[*at..];
            let is_url = rest.starts_with("http://") || rest.starts_with("https://");
            is_url && !rest.starts_with("http://www.w3.org/2000/svg")
        });
        assert!(outside.is_none(), "{}", &source[outside.unwrap().0..][..80]);
    }
    let missing = service.request("GET", "/assets/none.js", &[], b"");
    assert_problem(&missing, 404, "/assets/none.js");
    let policy = service.request("GET", "/", &[], b"").header("content-security-policy").unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
}

#[test]
fn image_that_browsers_cannot_show_has_a_small_copy() {
    let service = Service::start(0, &["--max-pixels", "1000000"], &[]);
    let thumbnail = |name: &str| {
        let id = service.submit(name, &test_image(name));
        service.request("GET", &format!("/v1/jobs/{id}/thumbnail"), &[], b"")
    };
    for (name, (width, height)) in [
        ("formats/photo.heic", (72, 64)),
        ("formats/turned.avif", (0, 0)),
        ("orientation-6.jpg", (0, 0)),
        ("one-pixel.png", (1, 1)),
    ] {
        let copy = thumbnail(name);
        assert_eq!((copy.status, copy.header("content-type")), (200, Some("image/jpeg")), "{name}: {}", copy.text());
        assert_eq!(copy.header("x-content-type-options"), Some("nosniff"));
        let shown = image::load_from_memory(&copy.body).unwrap();
        let size = (shown.width(), shown.height());
        assert!(size.0.max(size.1) <= 512, "{name}: {size:?}");
        if width > 0 {
            assert_eq!(size, (width, height), "{name}");
        }
    }
    // A photograph that lies on its side is turned upright.
    let upright = image::load_from_memory(&thumbnail("orientation-1.jpg").body).unwrap().into_rgb8();
    let turned = image::load_from_memory(&thumbnail("orientation-6.jpg").body).unwrap().into_rgb8();
    assert_eq!(upright.dimensions(), turned.dimensions());
    for name in ["hostile/half.png", "hostile/huge-header.png", "black-49-megapixels.png"] {
        assert_problem(&thumbnail(name), 422, "no small copy");
    }
    let unknown = format!("/v1/jobs/{}/thumbnail", uuid::Uuid::now_v7());
    assert_problem(&service.request("GET", &unknown, &[], b""), 404, "no job");
}
