//! Sealed images that do not work: their tests say so in bounded time, and nothing is published.

use crate::bench::Bench;

/// Each way for a sealed image to be broken: what breaks it, and what a person is told.
const BROKEN: [(&str, &str, &[&str]); 3] = [
    (
        "services",
        "[[step]]\nrun = \"printf '[Service]\\nType=oneshot\\nExecStart=/bin/false\\n[Install]\\nWantedBy=multi-user.target\\n' \
         >/etc/systemd/system/broken.service; systemctl enable broken.service\"\n\
         [[test]]\nunit = \"broken.service\"\n[[test]]\nport = 80\n",
        &["test `unit broken.service`", "test `port 80`", "found nothing that listens there", "2 of 2 tests failed"],
    ),
    (
        "grub",
        "[[step]]\nrun = \"rm -rf /boot/grub\"\n[[test]]\nrun = \"true\"\n",
        &["the sealed image does not boot", "GRUB does not find the rest of itself", "grub rescue>"],
    ),
    (
        "panic",
        "[[step]]\nrun = \"sed -i 's,^\\\\([[:space:]]*linux.*\\\\),\\\\1 init=/bin/false,' /boot/grub/grub.cfg\"\n[[test]]\nrun = \"true\"\n",
        &["the sealed image does not boot", "kernel panicked", "Attempted to kill init"],
    ),
];

#[test]
#[ignore = "boots a VM"]
fn a_broken_image_is_refused_in_bounded_time_with_the_reason() {
    let bench = Bench::new();
    for (name, text, reasons) in BROKEN {
        let spec = bench.spec(name, text);
        let began = std::time::Instant::now();
        let stderr = bench.fails(&spec, 9);
        let took = began.elapsed();
        println!("broken {name}: exit 9 after {:.1} s\n{}", took.as_secs_f64(), tail(&stderr, 24));
        for reason in reasons {
            assert!(stderr.contains(reason), "`{reason}` is not in: {stderr}");
        }
        assert!(!bench.path("store").join(name).exists());
        // A boot that never answers would have 20 minutes here.
        assert!(took.as_secs() < 900, "{took:?}");
    }
}

fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
