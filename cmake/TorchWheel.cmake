# Makes the target torch_wheel from the torch package of FORGE_PYTHON, and sets FORGE_TORCH_FOUND,
# FORGE_TORCH_PYTHON (the Python it is of), FORGE_TORCH_LIB (the folder of its libraries) and FORGE_TORCH_CUDA (the
# release of CUDA that it is built for; empty where for none).
#
# The wheel is asked where its files are. find_package(Torch) is not used: on a CUDA wheel it insists on a
# CUDA toolkit, which linking against the wheel does not need.

set(FORGE_PYTHON "" CACHE STRING
    "Python whose torch is used (empty: Python_EXECUTABLE, which pip's build gives; .venv/bin/python; python3)")
set(_python "${FORGE_PYTHON}")
if(NOT _python)
  set(_python python3)
  if(Python_EXECUTABLE)
    set(_python "${Python_EXECUTABLE}")
  elseif(EXISTS "${PROJECT_SOURCE_DIR}/.venv/bin/python")
    set(_python "${PROJECT_SOURCE_DIR}/.venv/bin/python")
  endif()
endif()

# Finding the package is quick, importing it takes seconds: the answer is kept until the package changes.
execute_process(
  COMMAND "${_python}" -c
          "import importlib.util as u, os; s = u.find_spec('torch'); p = s and s.origin or ''
print(p, os.path.getmtime(p) if p else '')"
  OUTPUT_VARIABLE _found OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
list(LENGTH FORGE_TORCH_FACTS _facts)
if(_found AND NOT ("${_python} ${_found}" STREQUAL "${FORGE_TORCH_OF}" AND _facts EQUAL 6))
  execute_process(
    COMMAND "${_python}" -c
            "import sys, torch, torch.utils.cpp_extension as e
lines = [sys.executable, torch.__version__, e.include_paths(), e.library_paths(),
         int(torch._C._GLIBCXX_USE_CXX11_ABI), torch.version.cuda or '-']
print(';'.join('|'.join(x) if isinstance(x, list) else str(x) for x in lines))"
    OUTPUT_VARIABLE _answer OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE _failed ERROR_VARIABLE _reason)
  if(_failed)
    set(_severity WARNING)
    if(FORGE_PACKAGE_ONLY)
      set(_severity FATAL_ERROR)
    endif()
    string(REGEX MATCH "[^\n]*\n?$" _reason "${_reason}")
    string(STRIP "${_reason}" _reason)
    message(${_severity} "forge: ${_python} cannot import its torch (${_reason}): build again when \
`${_python} -c 'import torch'` succeeds")
    set(_found "")
  else()
    set(FORGE_TORCH_OF "${_python} ${_found}" CACHE INTERNAL "")
    set(FORGE_TORCH_FACTS "${_answer}" CACHE INTERNAL "")
  endif()
endif()

if(NOT _found)
  set(FORGE_TORCH_FOUND FALSE)
  message(STATUS "forge: ${_python} has no usable torch; building without forge_torch, the forge executable and "
                 "their tests")
  return()
endif()
set(FORGE_TORCH_FOUND TRUE)

list(GET FORGE_TORCH_FACTS 0 FORGE_TORCH_PYTHON)
list(GET FORGE_TORCH_FACTS 1 _version)
list(GET FORGE_TORCH_FACTS 2 _includes)
list(GET FORGE_TORCH_FACTS 3 _libraries)
list(GET FORGE_TORCH_FACTS 4 _cxx11_abi)
list(GET FORGE_TORCH_FACTS 5 FORGE_TORCH_CUDA)
if(FORGE_TORCH_CUDA STREQUAL "-")
  set(FORGE_TORCH_CUDA "")
endif()
string(REPLACE "|" ";" _includes "${_includes}")
string(REPLACE "|" ";" _libraries "${_libraries}")
list(GET _libraries 0 FORGE_TORCH_LIB)
message(STATUS "forge: torch ${_version} of ${FORGE_TORCH_PYTHON}")

add_library(torch_wheel INTERFACE)
# Operators on tensors (+, *) and the like come without the header of all of torch's functions.
target_compile_definitions(torch_wheel INTERFACE _GLIBCXX_USE_CXX11_ABI=${_cxx11_abi} AT_PER_OPERATOR_HEADERS)
foreach(_dir IN LISTS _includes)
  # Searched last: the wheel carries its own fmt, which must not shadow the one that spdlog is built with.
  target_compile_options(torch_wheel INTERFACE "SHELL:-idirafter ${_dir}")
endforeach()
# at::parallel_for is a header template around an OpenMP pragma: without the flag it runs on one thread.
target_compile_options(torch_wheel INTERFACE -fopenmp)

# Imported libraries, so that CMake puts their folders on the build rpath.
function(_torch_wheel_library name path)
  add_library(torch_wheel_${name} SHARED IMPORTED)
  set_target_properties(torch_wheel_${name} PROPERTIES IMPORTED_LOCATION "${path}")
  target_link_libraries(torch_wheel INTERFACE torch_wheel_${name})
endfunction()

# -fopenmp is no link option: it would bring the system's libgomp in beside the wheel's own, and two OpenMP
# runtimes in one process each start their threads.
file(GLOB _gomp "${FORGE_TORCH_LIB}/libgomp*.so*" "${FORGE_TORCH_LIB}/../../torch.libs/libgomp*.so*")
if(_gomp)
  list(GET _gomp 0 _gomp)
  _torch_wheel_library(gomp "${_gomp}")
else()
  find_package(OpenMP REQUIRED COMPONENTS CXX)
  target_link_libraries(torch_wheel INTERFACE OpenMP::OpenMP_CXX)
endif()
# libtorch registers the backends when it is loaded; --no-as-needed keeps it though no symbol asks for it.
target_link_options(torch_wheel INTERFACE LINKER:--no-as-needed)
foreach(_name torch torch_cpu c10)
  _torch_wheel_library(${_name} "${FORGE_TORCH_LIB}/lib${_name}.so")
endforeach()
