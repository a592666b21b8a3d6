#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <exception>
#include <string>
#include <vector>

#include "forge/base/error.h"

namespace forge::testing {

// f throws forge::Error, and its sentence holds every one of the words.
template <class F>
::testing::AssertionResult refuses(F&& f, const std::vector<std::string>& words) {
  try {
    f();
  } catch (const Error& error) {
    std::string sentence = error.what();
    for (const std::string& word : words)
      if (sentence.find(word) == std::string::npos)
        return ::testing::AssertionFailure() << "\"" << sentence << "\" does not say \"" << word << "\"";
    return ::testing::AssertionSuccess();
  } catch (const std::exception& error) {
    return ::testing::AssertionFailure() << "not a forge::Error: " << error.what();
  }
  return ::testing::AssertionFailure() << "nothing is thrown, expected a sentence with \"" << words.front() << "\"";
}

// f returns or throws: tried in a child process, so that a check that is missing fails one test and not all.
template <class F>
bool survives(F&& f) {
  pid_t child = fork();
  if (child == 0) {
    try {
      f();
    } catch (...) {
    }
    _exit(0);
  }
  int status = 1;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace forge::testing
