//! The page in a real Chromium. Without `chromium` and `chromedriver` on the path the test is skipped, and both this
//! test and `scripts/test` report that.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::harness::{Service, label_of};
use crate::heads;
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
        let mut process =
            Command::new("chromedriver").arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
        let port = lines.find_map(|line| line.strip_suffix('.')?.rsplit("on port ").next()?.parse().ok());
        let port = port.expect("chromedriver prints its port");
        // It continues to write, and a full pipe would block it.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Driver { process, port })
    }

    fn open(&self, profile: &std::path::Path) -> Browser {
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
        let capabilities = json!({"goog:chromeOptions": {"args": arguments}});
        Browser::start(([127, 0, 0, 1], self.port).into(), &capabilities)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
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
