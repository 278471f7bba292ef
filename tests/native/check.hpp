// Claims and their counting: a test program returns the number of claims that did not hold.
#pragma once

#include <posecrafter/posecrafter.h>

#include <cstdio>
#include <string>

inline int failures = 0;

inline void claim(bool holds, const std::string& what, int line) {
    if (holds) return;
    std::printf("line %d: not so: %s\n", line, what.c_str());
    ++failures;
}

inline void claim_code(pc_status status, const std::string& expected, int line) {
    const std::string code = status == PC_OK ? "" : pc_last_error_code(), message = pc_last_error_message();
    claim(code == expected, "expected '" + expected + "', got '" + code + "' (" + message + ")", line);
    claim(code.empty() == message.empty(), "a refusal has a message", line);
}

#define CLAIM(what) claim((what), #what, __LINE__)
#define REFUSED(code, call) claim_code((call), code, __LINE__)
#define WELL(call) claim_code((call), "", __LINE__)
