//! The page in a real Chromium. Without `chromium` and `chromedriver` on the path the test is skipped, and both this
//! test and `scripts/test` report that.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{Service, label_of, test_image, until};
use crate::heads;
use crate::http_server::{Answer, serve_on};
use crate::keys::create_key;
use crate::model_requests::second_model;
use crate::onnx_graph::Network;
use crate::webdriver::{Browser, Element, Locator};

struct Driver {
    process: Child,
    port: u16,
}

impl Driver {
    /// Returns `None` when the browser or its driver is not installed.
    fn start() -> Option<Driver> {
        Command::new("chromium").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().ok()?;
        Command::new("chromedriver").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().ok()?;
        Some(until("a chromedriver that prints its port", Driver::spawn))
    }

    /// Returns `None` when the driver ends at once: it takes any free port of IPv4, and ends if that port is taken in IPv6.
    fn spawn() -> Option<Driver> {
        let mut command = Command::new("chromedriver");
        let mut process = command.arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
        let Some(port) = lines.find_map(|line| line.strip_suffix('.')?.rsplit("on port ").next()?.parse().ok()) else {
            let _ = process.wait();
            return None;
        };
        // It continues to write, and a full pipe would block it.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Driver { process, port })
    }

    fn open(&self, profile: &Path) -> Browser {
        self.open_with(profile, &json!({}))
    }

    /// `preferences` are those of Chromium, such as whether pages may run scripts.
    fn open_with(&self, profile: &Path, preferences: &Value) -> Browser {
        let arguments = [
            "--headless".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-quic".to_owned(),
            "--no-first-run".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
            format!("--user-data-dir={}", profile.display()),
        ];
        let capabilities = json!({"goog:chromeOptions": {"args": arguments, "prefs": preferences}});
        Browser::start(([127, 0, 0, 1], self.port).into(), &capabilities)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns a driver, or says that the test is skipped.
fn driver() -> Option<Driver> {
    let driver = Driver::start();
    if driver.is_none() {
        eprintln!("SKIPPED: no chromium with chromedriver on this machine; the page was not tested");
    }
    driver
}

fn image(name: &str) -> String {
    format!("{}/tests/pictures/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Reports what axe finds in the page, in every state in which a test calls this. axe is installed by `tests/clients/install`.
fn check_accessibility(browser: &Browser, state: &str) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/.cache/axe/axe_playwright_python/axe.min.js");
    let Ok(axe) = std::fs::read_to_string(path) else {
        eprintln!(
            "SKIPPED: axe is not installed (tests/clients/install); the page was not checked in the state {state:?}"
        );
        return;
    };
    browser.run(&axe);
    let found = browser.run_async(
        "const done = arguments[arguments.length - 1];
         axe.run(document, {resultTypes: ['violations']}).then(
             (found) => done(found.violations.map((one) => `${one.id}: ${one.nodes.map((node) => node.html).join(' ')}`)),
             (error) => done([String(error)]));",
    );
    assert_eq!(found, json!([]), "in the state {state:?}");
}

/// Asserts that the page has loaded nothing from another host, and that nothing is wider than the window.
fn check_loads_and_width(browser: &Browser, state: &str) {
    let foreign = browser.run(
        "return performance.getEntriesByType('resource').map((entry) => entry.name)
             .filter((name) => !name.startsWith(location.origin) && !name.startsWith('blob:') && !name.startsWith('data:'));",
    );
    assert_eq!(foreign, json!([]), "{state}");
    let wide = browser.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth;");
    assert_eq!(wide, json!(0), "the page scrolls sideways in the state {state:?}");
}

/// Keeps a screenshot if a person wants to see what a test sees. Several tests at once overwrite each other's.
fn keep_screenshot(browser: &Browser) {
    if let Some(path) = std::env::var_os("IMGCLS_TEST_SCREENSHOT") {
        std::fs::write(path, browser.screenshot()).unwrap();
    }
}

#[test]
fn page_shows_labels_failures_and_hostile_names() {
    let Some(driver) = Driver::start() else {
        eprintln!("SKIPPED: no chromium with chromedriver on this machine; the page was not tested");
        return;
    };
    let service = Service::start(1, &[], &[]);
    let dir = tempfile::tempdir().unwrap();
    let hostile = dir.path().join("<img src=x onerror=alert(1)>.jpg");
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pictures");
    std::fs::copy(format!("{folder}/cup.jpg"), &hostile).unwrap();
    let files = [format!("{folder}/rocket.jpg"), hostile.display().to_string(), format!("{folder}/hostile/half.jpg")];
    let label = label_of("rocket.jpg");

    let browser = driver.open(&dir.path().join("profile"));
    browser.goto(&format!("http://{}/", service.address));
    browser.wait_for(Locator::Css("#files")).send_keys(&files.join("\n"));

    let good = "[data-testid=card][data-state=succeeded]";
    let top = browser.wait_for(Locator::Css(&format!("{good} [data-testid=top-label]"))).text();
    assert!(!top.is_empty());
    browser.wait_for(Locator::Css("[data-testid=card][data-state=failed] [data-testid=error]"));
    browser.wait_for(Locator::XPath("//*[@id='summary'][contains(., '2 done') and contains(., '1 failed')]"));

    let mut names = Vec::new();
    let mut labels = Vec::new();
    for card in browser.find_all(Locator::Css(good)) {
        names.push(card.find(Locator::Css("[data-testid=name]")).text());
        labels.push(card.find(Locator::Css("[data-testid=top-label]")).text());
        assert_eq!(card.find_all(Locator::Css("[data-testid=prediction]")).len(), 5);
    }
    assert!(names.iter().any(|name| name.contains("<img src=x onerror=alert(1)>")), "{names:?}");
    assert!(labels.iter().any(|shown| shown.contains(&label)), "{labels:?} lacks {label}");
    assert!(browser.find_all(Locator::Css("img[src=x]")).is_empty(), "a name became markup");
    assert_eq!(browser.find_all(Locator::Css("#model-choice[hidden]")).len(), 1, "there is only one model");
    keep_screenshot(&browser);
}

#[test]
fn page_classifies_with_the_model_that_was_chosen() {
    let Some(driver) = Driver::start() else {
        eprintln!("SKIPPED: no chromium with chromedriver on this machine; the page was not tested");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let second = second_model(dir.path());
    let flags = ["--model", "efficientnet-lite0", "--model", second.to_str().unwrap()];
    let service = Service::start(1, &flags, &flags);
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pictures/rocket.jpg");
    let answered_by = "[data-testid=card][data-state=succeeded] [data-testid=model]";

    let browser = driver.open(&dir.path().join("profile"));
    browser.goto(&format!("http://{}/", service.address));
    let choice = browser.wait_for(Locator::Css("#model-choice:not([hidden]) #model"));
    browser.wait_for(Locator::Css("#files")).send_keys(file);
    assert_eq!(browser.wait_for(Locator::Css(answered_by)).text(), "efficientnet-lite0 1");
    choice.send_keys("capitals");
    browser.wait_for(Locator::Css("#files")).send_keys(file);
    browser.wait_for(Locator::XPath("//*[@data-testid='model'][starts-with(., 'capitals ')]"));
}

#[test]
fn page_asks_for_a_key_and_keeps_it_for_the_tab() {
    let Some(driver) = Driver::start() else {
        eprintln!("SKIPPED: no chromium with chromedriver on this machine; the page was not tested");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let profile = dir.path().join("profile");
    let key = create_key(&dir.path().join("data"), "page", "classify", &[]);
    let service = Service::start_in(dir, 1, &["--auth", "required"], &[]);
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pictures/rocket.jpg");
    let url = format!("http://{}/", service.address);

    let browser = driver.open(&profile);
    browser.goto(&url);
    browser.wait_for(Locator::Css("#sign-in:not([hidden]) #key")).send_keys("imgcls_wrong\n");
    browser.wait_for(Locator::XPath("//*[@id='sign-in-problem'][contains(., 'no such key')]"));
    browser.wait_for(Locator::Css("#files")).send_keys(file);
    browser.wait_for(Locator::Css("#sign-in:not([hidden]) #key")).send_keys(&format!("{key}\n"));
    browser.wait_for(Locator::Css("[data-testid=card][data-state=succeeded] [data-testid=top-label]"));
    assert_eq!(browser.find_all(Locator::Css("#sign-in[hidden]")).len(), 1);

    // The tab keeps the key.
    browser.goto(&url);
    browser.wait_for(Locator::Css("#files")).send_keys(file);
    browser.wait_for(Locator::Css("[data-testid=card][data-state=succeeded]"));
    assert_eq!(browser.find_all(Locator::Css("#sign-in[hidden]")).len(), 1);
}

#[test]
fn page_shows_every_label_of_an_image() {
    let Some(driver) = Driver::start() else {
        eprintln!("SKIPPED: no chromium with chromedriver on this machine; the page was not tested");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (model, file) = (dir.path().join("colours"), dir.path().join("orange.png"));
    std::fs::create_dir(&model).unwrap();
    heads::write(&model, &Network::default(), heads::TWO_LABELS, heads::LABELS);
    std::fs::write(&file, heads::orange()).unwrap();
    let flags = ["--model", model.to_str().unwrap()];
    let service = Service::start(1, &flags, &flags);

    let browser = driver.open(&dir.path().join("profile"));
    browser.goto(&format!("http://{}/", service.address));
    browser.wait_for(Locator::Css("#files")).send_keys(file.to_str().unwrap());
    let labels = browser.wait_for(Locator::Css("[data-testid=card][data-state=succeeded] [data-testid=labels]"));
    let shown: Vec<String> = labels.find_all(Locator::Css("li")).iter().map(Element::text).collect();
    assert_eq!(shown, ["red", "blue"]);
    assert_eq!(browser.find_all(Locator::Css("[data-testid=prediction]")).len(), 3);
    keep_screenshot(&browser);
}

#[test]
fn page_is_usable_in_every_state_width_and_colour_scheme() {
    let Some(driver) = driver() else { return };
    let mut service = Service::start(0, &["--max-upload-bytes", "1MiB"], &[]);
    let dir = tempfile::tempdir().unwrap();
    let browser = driver.open(&dir.path().join("profile"));
    let everywhere = |state: &str| {
        for (width, features) in [
            (1280, &[][..]),
            (320, &[]),
            (1280, &[("prefers-color-scheme", "dark")]),
            (800, &[("forced-colors", "active")]),
        ] {
            let state = format!("{state}, {width} px, {features:?}");
            browser.emulate(width, 800, features);
            check_accessibility(&browser, &state);
            check_loads_and_width(&browser, &state);
            keep_screenshot_of(&browser, &state);
        }
        browser.emulate(1280, 800, &[]);
    };
    browser.goto(&format!("http://{}/", service.address));
    let hint = browser.wait_for(Locator::Css("#drop:not([hidden]) .drop-hint")).text();
    assert!(hint.contains("At most 1 MB each"), "{hint}");
    browser.wait_for(Locator::Css("#panel:not([hidden]) summary")).click();
    everywhere("empty");

    // No worker runs yet: the page tells the position of each image, and after a while what is missing.
    let large = dir.path().join("large.jpg");
    std::fs::write(&large, vec![0x55; 2 << 20]).unwrap();
    let files = [image("rocket.jpg"), image("hostile/half.jpg"), image("cup.jpg"), large.display().to_string()];
    browser.wait_for(Locator::Css("#files")).send_keys(&files.join("\n"));
    browser.wait_for(Locator::XPath("//*[@data-testid='note'][contains(., 'Position ')]"));
    browser.wait_for(Locator::XPath("//*[@data-testid='error'][contains(., 'At most 1 MB can be sent')]"));
    browser.wait_for(Locator::XPath("//*[@data-testid='note'][contains(., 'No worker is running')]"));
    browser.wait_for(Locator::XPath("//*[@id='panel-waiting'][. = '3']"));
    everywhere("queued");

    service.add_worker();
    browser.wait_for(Locator::XPath("//*[@id='summary'][contains(., '2 done') and contains(., '2 failed')]"));
    everywhere("done");
    let errors = browser.find_all(Locator::Css("[data-testid=error]"));
    assert!(errors.iter().all(|error| !error.text().contains("--")), "a person reads flags");

    let good = "[data-testid=card][data-state=succeeded]";
    browser.find_all(Locator::Css(&format!("{good} [data-testid=thumbnail]")))[0].click();
    browser.wait_for(Locator::Css("#viewer[open] img"));
    everywhere("enlarged");
    browser.press("\u{e00c}");
    until("the larger view is closed", || browser.find_all(Locator::Css("#viewer[open]")).is_empty().then_some(()));

    let code_button = format!("{good} [data-testid=code]");
    browser.find_all(Locator::Css(&code_button))[0].click();
    let shown = browser.wait_for(Locator::Css("#code[open] #code-text")).text();
    assert!(shown.starts_with("curl -F 'image=@") && shown.contains("/v1/classify'"), "{shown}");
    browser.wait_for(Locator::Css("#code input[value=Python]")).click();
    assert!(browser.wait_for(Locator::Css("#code-text")).text().contains("import requests"));
    everywhere("code");
    browser.press("\u{e00c}");

    // The page of a result.
    browser.find_all(Locator::Css(&format!("{good} [data-testid=result-page]")))[0].click();
    browser.wait_for(Locator::Css("#result[data-state=succeeded] [data-testid=history] li"));
    browser.wait_for(Locator::Css("#image img"));
    let history = browser.wait_for(Locator::Css("[data-testid=history]")).text();
    assert!(["submitted", "decoded", "inferred", "succeeded"].iter().all(|event| history.contains(event)), "{history}");
    everywhere("result");

    // Another visit: the browser remembers what it has seen, until it is told to forget.
    browser.goto(&format!("http://{}/", service.address));
    browser.wait_for(Locator::Css("#earlier:not([hidden]) [data-testid=earlier]"));
    assert_eq!(browser.find_all(Locator::Css("[data-testid=earlier]")).len(), 2);
    everywhere("earlier");
    browser.wait_for(Locator::Css("#forget")).click();
    assert_eq!(browser.find_all(Locator::Css("#earlier[hidden]")).len(), 1);
    browser.goto(&format!("http://{}/results/{}", service.address, uuid::Uuid::now_v7()));
    browser.wait_for(Locator::XPath("//*[@data-testid='error'][contains(., 'No such result')]"));
    everywhere("no result");
}

/// Keeps a screenshot of each state in the folder that the variable names, for people to look at.
fn keep_screenshot_of(browser: &Browser, state: &str) {
    if let Some(folder) = std::env::var_os("IMGCLS_TEST_SCREENSHOTS") {
        let name: String = state.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), browser.screenshot()).unwrap();
    }
}

#[test]
fn page_compares_two_models_and_shows_an_example() {
    let Some(driver) = driver() else { return };
    let dir = tempfile::tempdir().unwrap();
    let second = second_model(dir.path());
    let flags = ["--model", "efficientnet-lite0", "--model", second.to_str().unwrap()];
    let service = Service::start(1, &flags, &flags);
    let browser = driver.open(&dir.path().join("profile"));
    browser.goto(&format!("http://{}/", service.address));
    browser.wait_for(Locator::Css("#model-choice:not([hidden]) #compare")).send_keys("capitals");
    browser.wait_for(Locator::Css(".example[data-file='example-cup.jpg']")).click();
    let compared = "[data-testid=card][data-state=succeeded] [data-testid=comparison]";
    until("both answers", || (browser.find_all(Locator::Css(compared)).len() == 2).then_some(()));
    let models: Vec<String> = browser.find_all(Locator::Css("[data-testid=model]")).iter().map(Element::text).collect();
    assert!(models[0].starts_with("efficientnet-lite0 ") && models[1].starts_with("capitals "), "{models:?}");
    check_accessibility(&browser, "compared");
    keep_screenshot_of(&browser, "compared");
}

/// Small files are sent several in a request; each has its own answer or problem. Cards beyond the window get theirs too.
#[test]
fn page_follows_more_files_than_a_browser_has_connections() {
    let Some(driver) = driver() else { return };
    let service = Service::start(1, &[], &[]);
    let dir = tempfile::tempdir().unwrap();
    let cut = std::fs::read(image("rocket.jpg")).unwrap()[..2_000].to_vec();
    let files: Vec<String> = (0..120)
        .map(|number| {
            let path = dir.path().join(format!("{number}.jpg"));
            match number {
                40..43 => std::fs::write(&path, "no image").unwrap(),
                80 => std::fs::write(&path, &cut).unwrap(),
                _ => drop(std::fs::copy(image("rocket.jpg"), &path).unwrap()),
            }
            path.display().to_string()
        })
        .collect();
    let browser = driver.open(&dir.path().join("profile"));
    browser.goto(&format!("http://{}/", service.address));
    browser.wait_for(Locator::Css("#files")).send_keys(&files.join("\n"));
    browser.wait_for(Locator::XPath("//*[@id='summary'][. = '120 images, 116 done, 4 failed']"));
    let cards = |script: &str| browser.run(&format!("return [...document.querySelectorAll('.card')].map({script});"));
    until("every card's content", || {
        let filled = cards("(card) => card.querySelector('[data-testid=top-label], [data-testid=error]')?.textContent");
        filled.as_array().unwrap().iter().all(Value::is_string).then_some(())
    });
    let failed = cards(
        "(card) => card.dataset.state === 'failed' && [card.querySelector('.name').textContent,
                                                       card.querySelector('.problem-title').textContent]",
    );
    let failed: Vec<&Value> = failed.as_array().unwrap().iter().filter(|card| card.is_array()).collect();
    let unsupported = |name: &str| json!([name, "Not an accepted image type"]);
    let undecodable = json!(["80.jpg", "The image cannot be decoded"]);
    assert_eq!(failed, [&unsupported("40.jpg"), &unsupported("41.jpg"), &unsupported("42.jpg"), &undecodable]);

    let requests = browser.run(
        "const names = performance.getEntriesByType('resource').map((entry) => new URL(entry.name).pathname);
         return [names.filter((name) => name === '/v1/events').length,
                 names.filter((name) => name === '/v1/jobs').length,
                 names.filter((name) => /^.v1.jobs.[^/]+$/.test(name)).length];",
    );
    // Each job was followed by a stream that it shared with others, and none was asked for by itself.
    assert!(requests[0].as_u64().is_some_and(|streams| streams < 120), "{requests}");
    assert!(requests[1].as_u64().is_some_and(|uploads| uploads < 60), "{requests}");
    assert_eq!(requests[2], 0, "{requests}");
}

#[test]
fn page_works_with_the_keyboard_alone() {
    const TAB: &str = "\u{e004}";
    const ENTER: &str = "\u{e007}";
    let Some(driver) = driver() else { return };
    let service = Service::start(1, &[], &[]);
    let dir = tempfile::tempdir().unwrap();
    let browser = driver.open(&dir.path().join("profile"));
    browser.goto(&format!("http://{}/", service.address));
    browser.wait_for(Locator::Css("#examples:not([hidden])"));
    let focused = |selector: &str| {
        (0..60).any(|_| {
            browser.press(TAB);
            browser.run(&format!("return document.activeElement.matches({selector:?});")) == true
        })
    };
    assert!(focused("#files"), "the first control chooses files");
    assert!(focused(".example[data-file='example-rocket.jpg']"));
    browser.press(ENTER);
    browser.wait_for(Locator::Css("[data-testid=card][data-state=succeeded]"));
    assert!(focused("[data-testid=thumbnail]"));
    browser.press(ENTER);
    browser.wait_for(Locator::Css("#viewer[open]"));
    browser.press(ENTER);
    until("closed", || browser.find_all(Locator::Css("#viewer[open]")).is_empty().then_some(()));
    for control in ["[data-testid=result-page]", "[data-testid=code]"] {
        assert!(focused(control), "{control}");
    }
    browser.press(ENTER);
    browser.wait_for(Locator::Css("#code[open]"));
}

#[test]
fn page_without_script_classifies_and_refuses_in_words() {
    let Some(driver) = driver() else { return };
    let service = Service::start(1, &[], &[]);
    let dir = tempfile::tempdir().unwrap();
    let without_script = json!({"profile.managed_default_content_settings.javascript": 2});
    let browser = driver.open_with(&dir.path().join("profile"), &without_script);
    let url = format!("http://{}/", service.address);
    browser.goto(&url);
    browser.wait_for(Locator::Css("#myfile")).send_keys(&image("rocket.jpg"));
    keep_screenshot_of(&browser, "without script");
    browser.wait_for(Locator::Css("form.plain button")).click();
    let title = browser.wait_for(Locator::Css("main h1")).text();
    assert_eq!(title, label_of("rocket.jpg"));
    keep_screenshot_of(&browser, "without script, answered");
    browser.goto(&url);
    browser.wait_for(Locator::Css("#myfile")).send_keys(&image("hostile/half.jpg"));
    browser.wait_for(Locator::Css("form.plain button")).click();
    browser.wait_for(Locator::XPath("//main/h1[. = 'The image cannot be decoded']"));
    keep_screenshot_of(&browser, "without script, refused");
}

#[test]
fn page_takes_the_address_of_an_image_where_the_service_fetches_them() {
    let Some(driver) = driver() else { return };
    let dir = tempfile::tempdir().unwrap();
    let closed = Service::start(0, &[], &[]);
    let browser = driver.open(&dir.path().join("profile"));
    browser.goto(&format!("http://{}/", closed.address));
    browser.wait_for(Locator::Css("#examples:not([hidden])"));
    assert_eq!(browser.find_all(Locator::Css("#by-url[hidden]")).len(), 1, "this service fetches nothing");

    let flags = ["--allow-image-urls", "--allow-calls-to", "127.0.0.2"];
    let service = Service::start(1, &flags, &[]);
    let listener = TcpListener::bind("127.0.0.2:0").unwrap();
    let images = serve_on(listener, |request| match request.path.as_str() {
        "/photos/my%20cup.jpg" => Answer::text(200, "image/jpeg", test_image("cup.jpg")),
        _ => Answer::text(404, "text/plain", "nothing"),
    });
    browser.goto(&format!("http://{}/", service.address));
    let field = browser.wait_for(Locator::Css("#by-url:not([hidden]) #url"));
    check_accessibility(&browser, "with an address");
    browser.emulate(320, 800, &[]);
    check_loads_and_width(&browser, "with an address");
    keep_screenshot_of(&browser, "with an address");
    browser.emulate(1280, 800, &[]);
    field.send_keys(&format!("http://{images}/photos/my%20cup.jpg\n"));
    let good = "[data-testid=card][data-state=succeeded]";
    let label = browser.wait_for(Locator::Css(&format!("{good} [data-testid=top-label]"))).text();
    assert_eq!(label, label_of("cup.jpg"));
    assert_eq!(browser.wait_for(Locator::Css("[data-testid=name]")).text(), "my cup.jpg");
    // The service has a small copy, and the page asks nobody else.
    browser.wait_for(Locator::Css(&format!("{good} canvas")));
    check_loads_and_width(&browser, "fetched");
    browser.wait_for(Locator::Css(&format!("{good} [data-testid=code]"))).click();
    let shown = browser.wait_for(Locator::Css("#code[open] #code-text")).text();
    assert!(shown.contains("image_url") && shown.contains("my%20cup.jpg"), "{shown}");
    browser.press("\u{e00c}");
    field.send_keys(&format!("http://{images}/missing.jpg\n"));
    browser.wait_for(Locator::XPath("//*[@data-testid='error'][contains(., '404')]"));
    field.send_keys("http://127.0.0.1/private.jpg\n");
    let refused = browser.wait_for(Locator::XPath("//*[@data-testid='error'][contains(., 'cannot be fetched')]"));
    assert!(!refused.text().contains("--"), "{}", refused.text());
    check_accessibility(&browser, "fetched and refused");
    keep_screenshot_of(&browser, "fetched and refused");
}

#[test]
fn page_lists_what_was_sent_with_its_key_in_any_browser() {
    let Some(driver) = driver() else { return };
    let dir = tempfile::tempdir().unwrap();
    let profiles = dir.path().join("profiles");
    let data = dir.path().join("data");
    let [own, other] = ["own", "other"].map(|name| create_key(&data, name, "classify", &[]));
    let service = Service::start_in(dir, 1, &["--auth", "required"], &[]);
    let authorization = format!("Bearer {own}");
    for number in 0..14 {
        let disposition = format!("attachment; filename=\"{number}.jpg\"");
        let headers = [("Authorization", authorization.as_str()), ("Content-Disposition", &disposition)];
        let image = if number == 5 { test_image("hostile/half.jpg") } else { test_image("cup.jpg") };
        assert_eq!(service.request("POST", "/v1/jobs", &headers, &image).status, 202);
    }
    until("the end of all jobs", || {
        let queued = service.request("GET", "/v1/jobs?status=queued", &[("Authorization", &authorization)], b"");
        queued.json()["jobs"].as_array()?.is_empty().then_some(())
    });
    let sign_in = |key: &str, profile: &str| {
        let browser = driver.open(&profiles.join(profile));
        browser.goto(&format!("http://{}/", service.address));
        browser.wait_for(Locator::Css("#sign-in:not([hidden]) #key")).send_keys(&format!("{key}\n"));
        browser.wait_for(Locator::Css("#sign-in[hidden]"));
        browser
    };
    let browser = sign_in(&own, "own");
    browser.wait_for(Locator::Css("#kept:not([hidden]) [data-testid=kept]"));
    assert_eq!(browser.find_all(Locator::Css("[data-testid=kept]")).len(), 12);
    for (width, features) in [(1280, &[][..]), (320, &[]), (800, &[("forced-colors", "active")])] {
        browser.emulate(width, 800, features);
        let state = format!("kept, {width} px, {features:?}");
        check_accessibility(&browser, &state);
        check_loads_and_width(&browser, &state);
        keep_screenshot_of(&browser, &state);
    }
    browser.emulate(1280, 800, &[]);
    browser.wait_for(Locator::Css("#kept-more:not([hidden])")).click();
    until("the older ones", || (browser.find_all(Locator::Css("[data-testid=kept]")).len() == 14).then_some(()));
    let shown = browser.wait_for(Locator::Css("#kept-list")).text();
    assert!(shown.contains(&label_of("cup.jpg")) && shown.contains("Failed") && shown.contains("13.jpg"), "{shown}");
    browser.find_all(Locator::Css("[data-testid=kept] a"))[0].click();
    browser.wait_for(Locator::Css("#result[data-state=succeeded]"));

    let browser = sign_in(&other, "other");
    browser.wait_for(Locator::Css("#files")).send_keys(&image("rocket.jpg"));
    browser.wait_for(Locator::Css("[data-testid=card][data-state=succeeded]"));
    assert_eq!(browser.find_all(Locator::Css("[data-testid=kept]")).len(), 0, "jobs of another key");
}
