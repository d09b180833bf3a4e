#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sizland_chat_fuzz::configuration::run(data));
