//! Names that are forgiven, points of a rubric, a table of answers, metrics in a Pushgateway.

use super::*;
use crate::json_schema;

#[test]
fn synonyms_are_right_and_an_index_beats_a_name() {
    let folder = folder(&["a.jpg", "b.jpg", "c.jpg", "d.jpg"]);
    let (csv, names) = (folder.path().join("expected.csv"), folder.path().join("names.txt"));
    // The index of d says goldfish, although the label is that of the answer.
    fs::write(&csv, "file,label,class_index\na.jpg,Tinca_tinca,\nb.jpg,tabby cat,\nc.jpg,dog,\nd.jpg,tabby,1\n")
        .expect("written");
    fs::write(&names, "tench, Tinca tinca\ngoldfish\ntabby, tabby cat\ndog\n").expect("written");
    let images: Vec<_> = (0..4).map(jpeg).collect();
    let answers = [(0, "tench"), (2, "tabby"), (2, "tabby"), (2, "tabby")];
    let server = Server::start(move |seen| {
        let number = images.iter().position(|image| *image == seen.body).expect("one of the images");
        result(&[answers[number]])
    });
    let args = ["-n", "4", "--image-folder", path(folder.path()), "--expect", path(&csv), "--json"];
    let strict = report(&loadgen(&server, &args));
    assert_eq!(strict["accuracy"]["top1_correct"], 0, "{strict}");
    let forgiving = report(&loadgen(&server, &[&args[..], &["--names", path(&names)]].concat()));
    assert_eq!(forgiving["accuracy"]["top1_correct"], 2, "{forgiving}");
    let wrong: Vec<_> =
        forgiving["accuracy"]["wrong"].as_array().expect("a list").iter().map(|it| &it["file"]).collect();
    assert_eq!(wrong, ["c.jpg", "d.jpg"]);

    // The API of the legacy system returns a label; its class is found by the names.
    fs::write(&csv, "file,class_index\na.jpg,0\nb.jpg,1\n").expect("written");
    let legacy = Server::start(|_| Answer::text(200, "Tinca tinca\n"));
    let args = ["--api", "legacy", "-n", "2", "--image-folder", path(folder.path()), "--expect", path(&csv), "--json"];
    let refused = loadgen(&legacy, &args);
    assert!(code(&refused) == Some(1) && stderr(&refused).contains("or --names"), "{refused:?}");
    let judged = report(&loadgen(&legacy, &[&args[..], &["--names", path(&names)]].concat()));
    assert_eq!(
        (&judged["accuracy"]["judged"], &judged["accuracy"]["top1_correct"]),
        (&json!(2), &json!(1)),
        "{judged}"
    );

    let refused = loadgen(&server, &["-n", "1", "--names", path(&names)]);
    assert!(code(&refused) == Some(2) && stderr(&refused).contains("--expect"), "{refused:?}");
}

#[test]
fn rubric_gives_points_for_the_conditions_that_hold() {
    let folder = folder(&["a.jpg", "b.jpg"]);
    let (csv, rubric) = (folder.path().join("expected.csv"), folder.path().join("rubric.csv"));
    let page = folder.path().join("report.html");
    fs::write(&csv, "file,label\na.jpg,tabby\nb.jpg,tench\n").expect("written");
    fs::write(
        &rubric,
        "points,condition,what\n40,failed==0,every request is answered\n50,accuracy>=0.9,\n10.5,p99<1h,\n",
    )
    .expect("written");
    let server = always_cat();
    let args = ["-n", "4", "--image-folder", path(folder.path()), "--expect", path(&csv), "--rubric", path(&rubric)];
    let output = loadgen(&server, &[&args[..], &["--json", "--html", path(&page)]].concat());
    assert_eq!(code(&output), Some(0), "{output:?}");
    let report = report(&output);
    let schema: Value = serde_json::from_str(include_str!("../../../docs/loadgen-report.schema.json")).expect("JSON");
    assert_eq!(json_schema::faults(&schema, &schema, &report), [""; 0], "{report}");
    let grade = &report["grade"];
    assert_eq!((&grade["points"], &grade["of"]), (&json!(50.5), &json!(100.5)), "{grade}");
    let points: Vec<_> = grade["items"].as_array().expect("a list").iter().map(|item| item["points"].clone()).collect();
    assert_eq!(points, [40.0, 0.0, 10.5].map(|points| json!(points)), "{grade}");
    assert!(fs::read_to_string(&page).expect("a page").contains("50.5 of 100.5 points"));

    let text = stdout(&loadgen(&server, &args));
    assert!(text.contains("50.5 of 100.5  points") && text.contains("every request is answered"), "{text}");

    fs::write(&rubric, "points,condition\n1,accuracy>=0.9\n").expect("written");
    let refused = loadgen(&server, &["-n", "1", "--rubric", path(&rubric)]);
    assert!(code(&refused) == Some(2) && stderr(&refused).contains("--expect CSV"), "{refused:?}");
}

#[test]
fn every_request_is_a_line_of_the_table() {
    let folder = folder(&["a.jpg", "b.jpg"]);
    let (csv, table) = (folder.path().join("expected.csv"), folder.path().join("answers.csv"));
    fs::write(&csv, "file,label\na.jpg,tabby\nb.jpg,tench\n").expect("written");
    let server = Server::start(|seen| match seen.number {
        2 => Answer::json(422, &json!({"title": "not an image"})),
        _ => result(&[(281, "tabby")]),
    });
    let args = [
        "-n",
        "4",
        "-c",
        "1",
        "--image-folder",
        path(folder.path()),
        "--expect",
        path(&csv),
        "--answers",
        path(&table),
    ];
    assert_eq!(code(&loadgen(&server, &args)), Some(1));
    let mut reader = csv::Reader::from_path(&table).expect("a table");
    let rows: Vec<csv::StringRecord> = reader.records().collect::<Result<_, _>>().expect("rows of one length");
    let cells = |row: &csv::StringRecord| [0, 1, 2, 4, 5].map(|at| row[at].to_owned());
    assert_eq!(rows.len(), 4);
    assert_eq!(cells(&rows[0]), ["a.jpg", "tabby", "281", "tabby", "true"]);
    assert_eq!(cells(&rows[1]), ["b.jpg", "tabby", "281", "tench", "false"]);
    assert_eq!(cells(&rows[2]), ["a.jpg", "", "", "tabby", "false"]);
    assert!(rows[2][7].contains("status 422: not an image"), "{:?}", rows[2]);
    assert!(rows.iter().all(|row| row[6].parse::<f64>().is_ok_and(|ms| ms > 0.0)), "{rows:?}");
}

#[test]
fn figures_are_pushed_to_a_gateway() {
    let pushed = Arc::new(Mutex::new(Vec::new()));
    let seen = pushed.clone();
    let gateway = Server::start(move |request| {
        seen.lock().expect("no panic").push((request.method.clone(), request.target.clone(), request.body.clone()));
        Answer::text(200, "")
    });
    let server = always_cat();
    let output = loadgen(&server, &["-n", "20", "--push-gateway", &gateway.url()]);
    assert_eq!(code(&output), Some(0), "{output:?}");
    let output = loadgen(
        &server,
        &["-n", "1", "--push-gateway", &format!("{}/metrics/job/mine", gateway.url().trim_end_matches('/'))],
    );
    assert_eq!(code(&output), Some(0), "{output:?}");
    let pushed = pushed.lock().expect("no panic");
    let [(method, target, body), (_, own, _)] = &pushed[..] else { panic!("{pushed:?}") };
    assert_eq!(
        (method.as_str(), target.as_str(), own.as_str()),
        ("PUT", "/metrics/job/imgcls_loadgen", "/metrics/job/mine")
    );
    let text = String::from_utf8(body.clone()).expect("text");
    for line in [
        "# TYPE imgcls_loadgen_requests gauge",
        "imgcls_loadgen_requests{outcome=\"ok\"} 20",
        "imgcls_loadgen_requests{outcome=\"failed\"} 0",
        "imgcls_loadgen_thresholds_missed 0",
    ] {
        assert!(text.lines().any(|it| it == line), "no {line} in {text}");
    }
    assert!(text.contains("imgcls_loadgen_latency_seconds{quantile=\"0.5\"} ") && text.ends_with('\n'), "{text}");

    let refusing = Server::start(|_| Answer::text(400, "pushed metrics are invalid"));
    let output = loadgen(&server, &["-n", "1", "--push-gateway", &refusing.url()]);
    assert_eq!(code(&output), Some(1), "{output:?}");
    assert!(stderr(&output).contains("pushed metrics are invalid; see --push-gateway"), "{output:?}");
    // The report is printed all the same.
    assert!(stdout(&output).contains("1 ok, 0 failed"), "{output:?}");
}
